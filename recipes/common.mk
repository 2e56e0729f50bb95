# The rules of every recipe: data, source networks, the arms, training, evaluation, comparison, results.
#
# A recipe sets NETS_toy and NETS_paper, ARMS, COMPARISONS and PAPER, and includes this file. All recipes share $(OUT), so
# that a run which two of them need is trained once.
#
#   make SEEDS="1 2 3"                              fewer seeds
#   make SCALE=paper DATA=chexpert:/data/CheXpert SOURCE_resnet50=resnet50.safetensors
#   make -j64 RUN="srun --gres=gpu:1"               what goes before each train, eval and cca
#   make RUN="torchrun --nproc-per-node 8 -m"       one job on 8 GPUs
#   make -n                                         the commands, to read or to type

include ../make-4.3.mk

SCALE       ?= toy
SEEDS       ?= 1 2 3 4 5
OUT         ?= $(or $(OUT_$(SCALE)),../out/$(SCALE))
RUN         ?=
NETS        ?= $(NETS_$(SCALE))
COMPARISONS ?= none
CLASSES     ?= 5

# The two scales. Everything below is the same in both.

ifeq ($(SCALE),toy)
IMAGES      ?= 4000
DATA        ?= synthetic:fundus?n=$(IMAGES)&contrast=0.7
SOURCE_DATA ?= synthetic:textures?n=$(IMAGES)
SOURCE_CLASSES ?= 16
STEPS       ?= 300
EVAL_EVERY  ?= 20
PRETRAIN    ?= 2000
LR          ?= 0.001
THRESHOLD   ?= 0.75
WIDTH       ?= 0.125
IMAGE_SIZE  ?= 64
DEVICE      ?= cpu
LIMITS      := --device $(DEVICE) --threads 1 --quiet
CCA          = --image-size $(IMAGE_SIZE) $(LIMITS)
TRAIN       ?= --steps $(STEPS) --batch-size 16 $(or $(OPTIMISER_toy),--lr $(LR)) --eval-every $(EVAL_EVERY)
PRETRAINING ?= --steps $(PRETRAIN) --batch-size 16 --lr $(LR) --eval-every $(PRETRAIN)
SLIM        ?= resnet18 --arg channels=[16,32,32,64]
WIDTH_resnet18 := 0.25
else
DATA        ?= $(error SCALE=paper needs DATA=chexpert:FOLDER or DATA=eyepacs:FOLDER)
SOURCE_DATA ?= $(error SCALE=paper needs SOURCE_NET=FILE.safetensors for each NET, or SOURCE_DATA=folder:IMAGENET to pretrain it on)
SOURCE_CLASSES ?= 1000
PRESET      ?= $(if $(filter chexpert:%,$(DATA)),chexpert,retina)
THRESHOLD   ?= 0.91
IMAGE_SIZE  ?= $(if $(filter chexpert,$(PRESET)),224,587)
LIMITS      :=
CCA          = --image-size $(IMAGE_SIZE)
TRAIN       ?= --preset $(PRESET)
PRETRAINING ?= --epochs 90 --batch-size 256 --lr 0.1 --optimizer momentum --image-size 224
SLIM        ?= resnet50_slim
endif

.DELETE_ON_ERROR:
.SECONDARY:
.PHONY: all results clean
SHELL := bash
.SHELLFLAGS := -o pipefail -c

# A network is an architecture, or ARCHITECTURE@N: trained on N images. Its source network, and its blocks:
name    = $(firstword $(subst @, ,$(1)))
arch    = $(call name,$(1))$(if $(filter toy,$(SCALE)), --width $(or $(WIDTH_$(call name,$(1))),$(WIDTH)))
source  = $(or $(SOURCE_$(call name,$(1))),$(OUT)/sources/$(call name,$(1)).safetensors)
blocks  = $(if $(filter cbr%,$(1)),,conv1) block1 block2 block3 block4 $(if $(filter cbr_large_t%,$(1)),block5)
lower   = $(filter-out $(lastword $(call blocks,$(1))),$(call blocks,$(1)))
subset  = $(addprefix --subset ,$(word 2,$(subst @, ,$(1))))

RECIPE   := $(notdir $(CURDIR))
TARGET   := $(OUT)/data/target.csv
FIRST    := $(firstword $(SEEDS))
FOLDERS  := $(addprefix $(OUT)/,$(NETS))
RUNS     := $(foreach net,$(NETS),$(foreach arm,$(call ARMS,$(net)),$(SEEDS:%=$(OUT)/$(net)/runs/$(arm)/%)))
COMPARED := $(foreach net,$(NETS),$(foreach name,$(filter-out none,$(COMPARISONS)),$(SEEDS:%=$(OUT)/$(net)/cca/$(name)/%.json)))
comma    := ,
list      = $(subst $() $(),$(comma),$(strip $(1)))
unique    = $(if $(1),$(firstword $(1)) $(call unique,$(filter-out $(firstword $(1)),$(1))))
ALL_ARMS  = $(call unique,$(foreach net,$(NETS),$(call ARMS,$(net))))
REPORT    = wsurgery report $(FOLDERS) --arms $(call list,$(or $(strip $(ALL_ARMS)),none)) --cca $(call list,$(COMPARISONS)) \
            --threshold $(THRESHOLD) --paper paper.md --title $(RECIPE) --force > /dev/null

PAGE     := $(if $(strip $(ALL_ARMS) $(filter-out none,$(COMPARISONS))),$(OUT)/$(RECIPE).html)

all: $(PAGE) $(FIGURES)

$(OUT)/$(RECIPE).html: $(RUNS:=/metrics.json) $(RUNS:=/eval.json) $(COMPARED) paper.md
	$(REPORT) -o $@

# What stands in the recipe's folder as its last result.
results: all
	$(if $(PAGE),$(REPORT) -o RESULTS.md,$(RESULTS) > RESULTS.md)
	$(if $(FIGURES),cp $(FIGURES) .)
	$(foreach figure,$(notdir $(FIGURES)),printf '\n![%s](%s)\n' $(basename $(figure)) $(figure) >> RESULTS.md; )

clean:
	rm -rf $(OUT)

# Data, and the networks that SOURCE_NET is not given for, trained on the source task.

$(TARGET):
	@mkdir -p $(@D)
	wsurgery data make "$(DATA)" -o $@

$(OUT)/data/source.csv:
	@mkdir -p $(@D)
	wsurgery data make "$(SOURCE_DATA)" -o $@

$(OUT)/sources/%/init.safetensors:
	@mkdir -p $(@D)
	wsurgery init $(call arch,$*) --num-classes $(SOURCE_CLASSES) --seed 9 -o $@

# Training writes last.safetensors as it goes on; the target appears when it has ended.
$(OUT)/sources/%.safetensors: $(OUT)/sources/%/init.safetensors $(OUT)/data/source.csv
	$(RUN) wsurgery train $< --data $(OUT)/data/source.csv -o $(<D) $(PRETRAINING) --seed 9 $(LIMITS)
	ln -f $(<D)/last.safetensors $@

# The arms: how training starts. A line each; $* is the seed.

define NET_RULES
$(1)/init/random/%.safetensors:
	@mkdir -p $$(@D)
	wsurgery init $(call arch,$(2)) --num-classes $(CLASSES) --seed $$* -o $$@

$(1)/init/transfer/%.safetensors: $(3) $(1)/init/random/%.safetensors
	@mkdir -p $$(@D)
	wsurgery transfuse $$< --upto 100% --into $$(word 2,$$^) -o $$@

$(1)/init/meanvar/%.safetensors: $(3) $(1)/init/random/%.safetensors
	@mkdir -p $$(@D)
	wsurgery meanvar $$< --seed $$* | wsurgery transfuse - --upto 100% --into $$(word 2,$$^) -o $$@

$(1)/init/bn-meanvar/%.safetensors: $(3) $(1)/init/random/%.safetensors
	@mkdir -p $$(@D)
	wsurgery meanvar $$< --bn meanvar --seed $$* | wsurgery transfuse - --upto 100% --into $$(word 2,$$^) -o $$@

$(1)/init/bn-transfer/%.safetensors: $(3) $(1)/init/random/%.safetensors
	@mkdir -p $$(@D)
	wsurgery meanvar $$< --bn keep --seed $$* | wsurgery transfuse - --upto 100% --into $$(word 2,$$^) -o $$@

$(1)/init/sample/%.safetensors: $(3) $(1)/init/random/%.safetensors
	@mkdir -p $$(@D)
	wsurgery sample $$< --seed $$* | wsurgery transfuse - --upto 100% --into $$(word 2,$$^) -o $$@

$(1)/init/shuffle/%.safetensors: $(3) $(1)/init/random/%.safetensors
	@mkdir -p $$(@D)
	wsurgery shuffle $$< --seed $$* | wsurgery transfuse - --upto 100% --into $$(word 2,$$^) -o $$@

# The filters take the scale of the pretrained ones that they replace; all else is random.
$(1)/init/gabor/%.safetensors: $(3) $(1)/init/random/%.safetensors
	@mkdir -p $$(@D)
	wsurgery transfuse $$< --only $(if $(filter cbr%,$(2)),block1.conv.weight,conv1.weight) --into $$(word 2,$$^) | wsurgery gabor -o $$@

$(1)/init/slim-random/%.safetensors:
	@mkdir -p $$(@D)
	wsurgery init $(SLIM) --num-classes $(CLASSES) --seed $$* -o $$@

$(1)/init/slim-transfuse-block2/%.safetensors: $(3) $(1)/init/slim-random/%.safetensors
	@mkdir -p $$(@D)
	wsurgery transfuse $$< --upto block2 --into $$(word 2,$$^) -o $$@

# Train; compare. $* is ARM/SEED, or SEED.
$(1)/runs/%/metrics.json: $(1)/init/%.safetensors $(TARGET)
	$(RUN) wsurgery train $$< --data $(TARGET) -o $$(@D) $(TRAIN) $(call subset,$(2)) --image-size $(IMAGE_SIZE) --seed $$(notdir $$*) $(LIMITS)

$(1)/cca/transfer-to-init/%.json: $(1)/runs/transfer/%/metrics.json
	@mkdir -p $$(@D)
	$(RUN) wsurgery cca $$(<D)/last.safetensors --with-init --data $(TARGET) $(CCA) -o $$@

$(1)/cca/random-to-init/%.json: $(1)/runs/random/%/metrics.json
	@mkdir -p $$(@D)
	$(RUN) wsurgery cca $$(<D)/last.safetensors --with-init --data $(TARGET) $(CCA) -o $$@
endef

# Pretrained up to a block; pretrained or random features that are frozen up to it.
define BLOCK_RULES
$(1)/init/transfuse-$(2)/%.safetensors: $(3) $(1)/init/random/%.safetensors
	@mkdir -p $$(@D)
	wsurgery transfuse $$< --upto $(2) --into $$(word 2,$$^) -o $$@

$(1)/init/freeze-$(2)/%.safetensors: $(1)/init/transfer/%.safetensors
	@mkdir -p $$(@D)
	wsurgery freeze-spec $$< --upto $(2) -o $$@

$(1)/init/freeze-hybrid-$(2)/%.safetensors: $(1)/init/transfuse-$(2)/%.safetensors
	@mkdir -p $$(@D)
	wsurgery freeze-spec $$< --upto $(2) -o $$@

$(1)/init/freeze-random-$(2)/%.safetensors: $(1)/init/random/%.safetensors
	@mkdir -p $$(@D)
	wsurgery freeze-spec $$< --upto $(2) -o $$@
endef

# Two trained networks, A of seed $(5) and B of seed $(6), and the same two as training began.
define PAIR_RULES
$(1)/cca/$(4)/$(5).json: $(1)/runs/$(2)/$(5)/metrics.json $(1)/runs/$(3)/$(6)/metrics.json
	@mkdir -p $$(@D)
	$(RUN) wsurgery cca $$(addsuffix last.safetensors,$$(^D:=/)) --data $(TARGET) $(CCA) -o $$@

$(1)/cca/$(4)-at-init/$(5).json: $(1)/init/$(2)/$(5).safetensors $(1)/init/$(3)/$(6).safetensors $(TARGET)
	@mkdir -p $$(@D)
	$(RUN) wsurgery cca $$(wordlist 1,2,$$^) --data $(TARGET) $(CCA) -o $$@
endef

NEXT := $(join $(SEEDS:%=%/),$(wordlist 2,$(words $(SEEDS)),$(SEEDS)) $(FIRST))  # each seed with the next: 1/2 2/3 3/1

$(foreach net,$(NETS),\
  $(eval $(call NET_RULES,$(OUT)/$(net),$(net),$(call source,$(net))))\
  $(foreach block,$(call blocks,$(net)),$(eval $(call BLOCK_RULES,$(OUT)/$(net),$(block),$(call source,$(net)))))\
  $(foreach seed,$(SEEDS),$(eval $(call PAIR_RULES,$(OUT)/$(net),transfer,random,transfer-random,$(seed),$(seed))))\
  $(foreach pair,$(NEXT),\
    $(eval $(call PAIR_RULES,$(OUT)/$(net),transfer,transfer,pretrained-pair,$(patsubst %/,%,$(dir $(pair))),$(notdir $(pair))))\
    $(eval $(call PAIR_RULES,$(OUT)/$(net),random,random,random-pair,$(patsubst %/,%,$(dir $(pair))),$(notdir $(pair))))))

# One process evaluates many checkpoints: importing PyTorch takes longer than evaluating a toy.
$(RUNS:=/eval.json) &: $(RUNS:=/metrics.json)
	$(RUN) wsurgery eval $(RUNS:=/best.safetensors) --data $(TARGET) --image-size $(IMAGE_SIZE) --beside eval.json --force $(LIMITS)

# Pictures, of the first seed where they show one.

$(OUT)/curves-$(RECIPE)-%.png: $(RUNS:=/metrics.json)
	wsurgery curves $(filter $(OUT)/$*/%,$(RUNS)) -o $@ --threshold $(THRESHOLD) --force --quiet

$(OUT)/filters-%.png: $(OUT)/%/runs/random/$(FIRST)/metrics.json $(OUT)/%/runs/transfer/$(FIRST)/metrics.json
	wsurgery filters $(foreach run,$(^D),$(run)/init.safetensors $(run)/last.safetensors) -o $@ --force --quiet

FIRST_LAYERS = $$(call source,$$*) $(foreach arm,meanvar random,$(OUT)/%/init/$(arm)/$(FIRST).safetensors)
.SECONDEXPANSION:
$(OUT)/conv1-%.png: $(FIRST_LAYERS)
	wsurgery filters $^ -o $@ --force --quiet

$(OUT)/histogram-%.png: $(FIRST_LAYERS)
	wsurgery histogram $^ -o $@ --force --quiet
