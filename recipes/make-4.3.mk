# The recipes have grouped targets (&:). Before make 4.3 such a recipe runs once for each target; macOS has make 3.81.
ifneq ($(filter 3.% 4.0 4.0.% 4.1 4.1.% 4.2 4.2.%,$(MAKE_VERSION)),)
$(error the recipes need GNU make 4.3 or later, this is $(MAKE_VERSION): brew install make, then gmake instead of make)
endif
