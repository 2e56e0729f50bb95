# Settings are inputs: `$(call stamp,NAME,TEXT)` makes $(OUT)/settings/NAME a file that holds TEXT. It is written where the text
# is another than before, and only then, so what depends on it is made again when a variable changed, and not otherwise.

same   = $(and $(findstring _$(1)_,_$(2)_),$(findstring _$(2)_,_$(1)_))
quoted = '$(subst ','\'',$(1))'
define STAMP
$(OUT)/settings/$(1): $(if $(call same,$(file <$(OUT)/settings/$(1)),$(2)),,always)
	@mkdir -p $$(@D) && printf '%s\n' $(call quoted,$(subst $$,$$$$,$(2))) > $$@
endef
stamp  = $(eval $(call STAMP,$(1),$(strip $(2))))

.PHONY: always

# make parts words at spaces, and a path that has one would be two: `$(call one_word,NAME)` says so before anything runs.
one_word = $(if $(word 2,$($(1))),$(error $(1)=$($(1)): make takes no path with spaces here: give a link to it without any))
