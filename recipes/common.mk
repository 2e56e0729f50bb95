# The rules of every recipe: data, source networks, the arms, training, evaluation, comparison, results.
#
# A recipe sets NETS_toy and NETS_paper, ARMS, COMPARISONS and PAPER, and includes this file. All recipes share $(OUT), so
# that a run which two of them need is trained once.
#
#   make SEEDS="1 2 3"                              fewer seeds, or more: what is there stays
#   make DATA=my.csv                                a table of your own, or any specification of `wsurgery data make`
#   make NETS=mine MODEL_mine=net.py:make SOURCE_mine=weights.pth    a network of your own, and its pretrained weights
#   make SCALE=paper DATA=chexpert:/data/CheXpert SOURCE_resnet50=resnet50.safetensors
#   make -j64 RUN="srun --gres=gpu:1"               what goes before each train, eval and cca
#   make RUN="torchrun --nproc-per-node 8 -m"       one job on 8 GPUs
#   make SOURCES="1 2 3"                            seeds of the source networks, which the seeds take in turn
#   make -n                                         the commands, to read or to type
#
# An arm of your own is a line above the include, and its name in ARMS:
#
#   ARM_half = wsurgery scale $(PRETRAINED) --by 0.5 | $(ONTO)
#
# What is changed, on the command line or in the recipe, makes again what depends on it, and nothing else.

COMMON := $(patsubst ./,,$(dir $(lastword $(MAKEFILE_LIST))))
include $(COMMON)make-4.3.mk $(COMMON)stamps.mk

SCALE       ?= toy
SEEDS       ?= 1 2 3 4 5
SOURCES     ?= $(if $(filter toy,$(SCALE)),1 2 3 4 5,1)
OUT         ?= $(or $(OUT_$(SCALE)),$(COMMON)out/$(SCALE))
RUN         ?=
NETS        ?= $(NETS_$(SCALE))
COMPARISONS ?= none
CLASSES     ?= $(if $(OWN),$$(wsurgery data show $(TARGET) --labels | wc -l),5)

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
THRESHOLD   ?= 80%,90%,95%
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
DATA        ?=
SOURCE_DATA ?=
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

OWN         := $(if $(filter synthetic:fundus%,$(DATA)),,yes)

.DEFAULT_GOAL := all
.DELETE_ON_ERROR:
.PHONY: all results clean
SHELL := bash
.SHELLFLAGS := -o pipefail -c

# A network is an architecture, or ARCHITECTURE@N: trained on N images; or any name, with MODEL_NAME=FILE.py:CALLABLE, and
# BLOCKS_NAME if `show` names others than these. Its source network for a seed is SOURCE_NAME, or is trained, and its blocks:
SOURCE_OF := $(shell for seed in $(SEEDS); do set -- $(SOURCES); shift $$(((seed + $(words $(SOURCES)) - 1) % $(words $(SOURCES)))); echo $$seed:$$1; done)
name    = $(firstword $(subst @, ,$(1)))
own     = $(addprefix --model ,$(MODEL_$(call name,$(1))))
arch    = $(or $(call own,$(1)),$(call name,$(1))$(if $(filter toy,$(SCALE)), --width $(or $(WIDTH_$(call name,$(1))),$(WIDTH))))
source  = $(or $(if $(filter %.safetensors,$(SOURCE_$(call name,$(1)))),$(SOURCE_$(call name,$(1)))),\
            $(if $(SOURCE_$(call name,$(1))),$(OUT)/sources/$(call name,$(1))/given.safetensors),$(OUT)/sources/$(call name,$(1))/$(patsubst $(2):%,%,$(filter $(2):%,$(SOURCE_OF))).safetensors)
blocks  = $(or $(BLOCKS_$(call name,$(1))),$(if $(filter cbr%,$(1)),,conv1) block1 block2 block3 $(if $(call own,$(1)),,block4) $(if $(filter cbr_large_t%,$(1)),block5))
lower   = $(filter-out $(lastword $(call blocks,$(1))),$(call blocks,$(1)))
subset  = $(addprefix --subset ,$(word 2,$(subst @, ,$(1))))

RECIPE   := $(notdir $(CURDIR))
TARGET   := $(OUT)/data/target.csv
FIRST    := $(firstword $(SEEDS))
FOLDERS  := $(addprefix $(OUT)/,$(NETS))
RUNS     := $(foreach net,$(NETS),$(foreach arm,$(call ARMS,$(net)),$(SEEDS:%=$(OUT)/$(net)/runs/$(arm)/%)))
comma    := ,
define newline


endef
list      = $(subst $() $(),$(comma),$(strip $(1)))
unique    = $(if $(1),$(firstword $(1)) $(call unique,$(filter-out $(firstword $(1)),$(1))))
NAMES    := $(call unique,$(foreach net,$(NETS),$(call name,$(net))))
ALL_ARMS  = $(strip $(call unique,$(foreach net,$(NETS),$(call ARMS,$(net)))))
REPORT    = wsurgery report $(FOLDERS) --arms $(call list,$(or $(ALL_ARMS),none)) --cca $(call list,$(COMPARISONS)) \
            $(if $(ALL_ARMS),--threshold $(THRESHOLD) $(addprefix --plateau ,$(PLATEAU))) $(addprefix --claims ,$(wildcard claims.txt)) --paper paper.md --title $(RECIPE) --force > /dev/null

$(if $(ALL_ARMS)$(COMPARISONS:none=),$(if $(word 5,$(SEEDS)),,$(warning With $(words $(SEEDS)) seeds no test of a claim can be below .05: its smallest p is 1/2^seeds. Five are needed.)))

# An arm's twin is the same with another seed, 1000 higher: from the same source network, with another head, and images in
# another order. Thresholds in percent are of what the twins of random come to, which no claim is about; and pairs of trained
# networks that share no network with another pair, so that they are independent, are a run and its twin.
PLATEAU   := $(if $(findstring %,$(THRESHOLD)),random-twin)
PLATEAUS  := $(if $(ALL_ARMS),$(foreach net,$(NETS),$(foreach arm,$(PLATEAU),$(SEEDS:%=$(OUT)/$(net)/runs/$(arm)/%))))
COMPARED  := $(foreach net,$(NETS),$(foreach name,$(filter-out none,$(COMPARISONS)),$(SEEDS:%=$(OUT)/$(net)/cca/$(name)/%.json)))

# What each file depends on, besides other files.

$(call stamp,data,$(DATA))
$(call stamp,source-data,$(SOURCE_DATA))
$(call stamp,source,$(PRETRAINING))
$(call stamp,cca,$(CCA))
$(call stamp,page-$(RECIPE),$(RUNS) $(COMPARED) $(PLATEAUS) $(THRESHOLD))
$(call stamp,slim,$(SLIM) $(CLASSES))
$(foreach net,$(NETS),$(call stamp,network-$(net),$(call arch,$(net)) $(CLASSES)))
$(foreach net,$(NAMES),$(call stamp,source-$(net),$(call arch,$(net)) $(SOURCE_CLASSES)))
$(foreach net,$(NETS),$(call stamp,train-$(net),$(TRAIN) $(call own,$(net)) $(call subset,$(net)) --image-size $(IMAGE_SIZE)))

PAGE     := $(if $(strip $(ALL_ARMS) $(filter-out none,$(COMPARISONS))),$(OUT)/$(RECIPE).html)

all: $(PAGE) $(FIGURES)

$(OUT)/$(RECIPE).html: $(RUNS:=/metrics.json) $(PLATEAUS:=/metrics.json) $(if $(RUNS),$(OUT)/$(RECIPE).evaluated) $(COMPARED) $(OUT)/settings/page-$(RECIPE) paper.md $(wildcard claims.txt)
	$(REPORT) -o $@

# What stands in the recipe's folder as its last result.
results: all
	$(if $(PAGE),$(REPORT) -o RESULTS.md,$(RESULTS) > RESULTS.md)
	$(if $(FIGURES),cp $(FIGURES) .)
	$(foreach figure,$(notdir $(FIGURES)),printf '\n![%s](%s)\n' $(basename $(figure)) $(figure) >> RESULTS.md; )

# This recipe's own: its page, pictures, runs and comparisons. The next recipe trains again what it shared of them.
clean:
	rm -rf $(PAGE) $(FIGURES) $(OUT)/$(RECIPE).evaluated $(RUNS) $(COMPARED)

# Data, and the networks that SOURCE_NET is not given for, trained on the source task.

$(TARGET): $(OUT)/settings/data $(wildcard $(firstword $(subst ?, ,$(DATA))))
	@mkdir -p $(@D)
	wsurgery data make "$(or $(DATA),$(error SCALE=paper needs DATA=chexpert:FOLDER or DATA=eyepacs:FOLDER))" -o $@ --force

NO_SOURCE := SCALE=paper needs SOURCE_NET=FILE.safetensors for each NET, or SOURCE_DATA=folder:IMAGENET to pretrain it on
$(OUT)/data/source.csv: $(OUT)/settings/source-data
	@mkdir -p $(@D)
	wsurgery data make "$(or $(SOURCE_DATA),$(error $(NO_SOURCE)))" -o $@ --force

# Training writes last.safetensors as it goes on; the target appears when it has ended.
define SOURCE_RULES
$(OUT)/sources/$(1)/$(2)/init.safetensors: $(OUT)/settings/source-$(1)
	@mkdir -p $$(@D)
	wsurgery init $(call arch,$(1)) --num-classes $(SOURCE_CLASSES) --seed $(2) -o $$@ --force

$(OUT)/sources/$(1)/$(2).safetensors: $(OUT)/sources/$(1)/$(2)/init.safetensors $(OUT)/data/source.csv $(OUT)/settings/source
	$(RUN) wsurgery train $$< $(call own,$(1)) --data $(OUT)/data/source.csv -o $$(<D) --anew $(PRETRAINING) --seed $(2) $(LIMITS)
	ln -f $$(<D)/last.safetensors $$@ && touch $$@
endef

# Weights as they were downloaded.
define GIVEN_RULE
$(OUT)/sources/$(1)/given.safetensors: $(SOURCE_$(1))
	@mkdir -p $$(@D)
	wsurgery convert $$< -o $$@ --force
endef

seed = $(if $(findstring -twin/,$(1)),$$((1000 + $(notdir $(1)))),$(notdir $(1)))

# How training starts, an arm a line. PRETRAINED is the source network, INITIAL a random network with the task's outputs,
# and ONTO puts what comes through the pipe on all of INITIAL but its head.

PRETRAINED = $<
INITIAL    = $(word 2,$^)
SEED       = $(call seed,$(patsubst $(OUT)/$(NET)/init/%.safetensors,%,$@))
NET        = $(notdir $(patsubst %/init/,%,$(dir $(patsubst %/,%,$(dir $@)))))
ONTO       = wsurgery transfuse - --upto 100% --into $(INITIAL)
UPTO       = wsurgery transfuse $(PRETRAINED) --upto $(1) --into $(INITIAL)
FRESH_SLIM = wsurgery init $(SLIM) --num-classes $(CLASSES) --no-zero-init-last --seed $(SEED)

# Random weights have residual branches as open as the edited ones have them, of which batch norm is the identity too: else
# each comparison were also one of open against closed branches. timm closes them (zero_init_last); that is an arm of its own.
ARM_random-timm = wsurgery init $(call arch,$(NET)) --num-classes $(CLASSES) --seed $(SEED)

ARM_transfer    = $(call UPTO,100%)
ARM_meanvar     = wsurgery meanvar $(PRETRAINED) --seed $(SEED) | $(ONTO)
ARM_bn-meanvar  = wsurgery meanvar $(PRETRAINED) --bn meanvar --seed $(SEED) | $(ONTO)
ARM_bn-transfer = wsurgery meanvar $(PRETRAINED) --bn keep --seed $(SEED) | $(ONTO)
ARM_sample      = wsurgery sample $(PRETRAINED) --seed $(SEED) | $(ONTO)
ARM_shuffle     = wsurgery shuffle $(PRETRAINED) --seed $(SEED) | $(ONTO)
# The filters take the scale of the pretrained ones that they replace; all else is random.
ARM_gabor       = wsurgery transfuse $(PRETRAINED) --only $(if $(filter cbr%,$(NET)),block1.conv.weight,conv1.weight) --into $(INITIAL) | wsurgery gabor
ARM_slim-random = $(FRESH_SLIM)
ARM_slim-transfuse-block2 = $(FRESH_SLIM) | wsurgery transfuse $(PRETRAINED) --upto block2

# Pretrained up to a block; pretrained or random features that are frozen up to it. A frozen batch norm goes on with its running
# statistics: pretrained ones for pretrained features, and for random ones those of the target's images, or they would be 0 and 1.
define BLOCK_ARMS
ARM_transfuse-$(1)     = $$(call UPTO,$(1))
ARM_freeze-$(1)        = $$(call UPTO,100%) | wsurgery freeze-spec --upto $(1)
ARM_freeze-hybrid-$(1) = $$(call UPTO,$(1)) | wsurgery freeze-spec --upto $(1)
ARM_freeze-random-$(1) = wsurgery recalibrate-bn $$(INITIAL) $$(call own,$$(NET)) --data $$(TARGET) --image-size $$(IMAGE_SIZE) | wsurgery freeze-spec --upto $(1)
endef
$(foreach block,conv1 block1 block2 block3 block4 block5,$(eval $(call BLOCK_ARMS,$(block))))

define NET_RULES
$(foreach arm,random random-twin,$(SEEDS:%=$(1)/init/$(arm)/%.safetensors)): $(OUT)/settings/network-$(2) $(if $(OWN),$(TARGET))
	@mkdir -p $$(@D)
	wsurgery init $(call arch,$(2)) --num-classes $$(CLASSES) --no-zero-init-last --seed $$(SEED) -o $$@ --force

# Train; compare. $* is ARM/SEED, or SEED. A run that was cut off goes on; with other settings, it begins anew.
$(1)/runs/%/metrics.json: $(1)/init/%.safetensors $(TARGET) $(OUT)/settings/train-$(2)
	$(RUN) wsurgery train $$< $(call own,$(2)) --data $(TARGET) -o $$(@D) --anew $(TRAIN) $(call subset,$(2)) --image-size $(IMAGE_SIZE) --seed $$(call seed,$$*) $(LIMITS)

$(1)/cca/transfer-to-init/%.json: $(1)/runs/transfer/%/metrics.json $(OUT)/settings/cca
	@mkdir -p $$(@D)
	$(RUN) wsurgery cca $$(<D) $(call own,$(2)) --with-init --data $(TARGET) $(CCA) -o $$@ --force

$(1)/cca/random-to-init/%.json: $(1)/runs/random/%/metrics.json $(OUT)/settings/cca
	@mkdir -p $$(@D)
	$(RUN) wsurgery cca $$(<D) $(call own,$(2)) --with-init --data $(TARGET) $(CCA) -o $$@ --force
endef

arm_is = $(or $(ARM_$(1)),$(ARM_$(patsubst %-twin,%,$(1))))

# $(4) is a seed; a twin stands on the twin of random.
define ARM_RULES
$(2)/init/$(1)/$(4).safetensors: $(call source,$(3),$(4)) $(2)/init/random$(if $(filter %-twin,$(1)),-twin)/$(4).safetensors \
    $(OUT)/settings/arm-$(1)-$(3) $(if $(filter slim%,$(1)),$(OUT)/settings/slim) $(if $(findstring recalibrate-bn,$(call arm_is,$(1))),$(TARGET))
	@mkdir -p $$(@D)
	$$(or $$(call arm_is,$(1)),$$(error ARM_$(1) is not set: how does the arm $(1) start? See the top of common.mk)) -o $$@ --force
endef

# Two trained networks, and the same two as training began.
define PAIR_RULES
$(1)/cca/$(4)/%.json: $(1)/runs/$(2)/%/metrics.json $(1)/runs/$(3)/%/metrics.json $(OUT)/settings/cca
	@mkdir -p $$(@D)
	$(RUN) wsurgery cca $$(patsubst %/,%,$$(dir $$(wordlist 1,2,$$^))) $(call own,$(notdir $(1))) --data $(TARGET) $(CCA) -o $$@ --force

$(1)/cca/$(4)-at-init/%.json: $(1)/init/$(2)/%.safetensors $(1)/init/$(3)/%.safetensors $(TARGET) $(OUT)/settings/cca
	@mkdir -p $$(@D)
	$(RUN) wsurgery cca $$(wordlist 1,2,$$^) $(call own,$(notdir $(1))) --data $(TARGET) $(CCA) -o $$@ --force
endef

all_arms = $(filter-out random random-twin,$(call unique,transfer transfer-twin meanvar $(call ARMS,$(1))))

$(foreach name,$(NAMES),$(eval $(call GIVEN_RULE,$(name)))$(foreach seed,$(SOURCES),$(eval $(call SOURCE_RULES,$(name),$(seed)))))
$(foreach net,$(NETS),\
  $(eval $(call NET_RULES,$(OUT)/$(net),$(net)))\
  $(foreach arm,$(call all_arms,$(net)),$(call stamp,arm-$(arm)-$(net),$(call arm_is,$(arm)))\
    $(foreach seed,$(SEEDS),$(eval $(call ARM_RULES,$(arm),$(OUT)/$(net),$(net),$(seed)))))\
  $(eval $(call PAIR_RULES,$(OUT)/$(net),transfer,random,transfer-random))\
  $(eval $(call PAIR_RULES,$(OUT)/$(net),transfer,transfer-twin,pretrained-pair))\
  $(eval $(call PAIR_RULES,$(OUT)/$(net),random,random-twin,random-pair)))

# What make would take for an intermediate file, and delete.
.SECONDARY: $(foreach net,$(NETS),$(foreach arm,random random-twin $(call all_arms,$(net)),$(SEEDS:%=$(OUT)/$(net)/init/$(arm)/%.safetensors) \
  $(SEEDS:%=$(OUT)/$(net)/runs/$(arm)/%/metrics.json)))

# One process evaluates all that were trained since, but for networks of your own, which have one each: importing PyTorch takes
# longer than evaluating a toy.
OWN_NETS    := $(foreach net,$(NETS),$(if $(call own,$(net)),$(net)))
EVALUATIONS := $(RUNS:=/eval.json)
STALE        = $(shell for run in $(RUNS); do \
                 test $$run/eval.json -nt $$run/metrics.json || echo $$run; done)
EVALUATE     = $(if $(1),$(RUN) wsurgery eval $(1) $(call own,$(2)) --data $(TARGET) --beside eval.json --force $(LIMITS))
$(OUT)/$(RECIPE).evaluated: $(RUNS:=/metrics.json) $(if $(filter-out $(wildcard $(EVALUATIONS)),$(EVALUATIONS)),always)
	$(call EVALUATE,$(filter-out $(addsuffix /%,$(addprefix $(OUT)/,$(OWN_NETS))),$(STALE)))
	$(foreach net,$(OWN_NETS),$(call EVALUATE,$(filter $(OUT)/$(net)/%,$(STALE)),$(net))$(newline))
	@touch $@

# Pictures, of the first seed where they show one.

$(OUT)/curves-$(RECIPE)-%.png: $(RUNS:=/metrics.json) $(OUT)/settings/page-$(RECIPE)
	wsurgery curves $(filter $(OUT)/$*/%,$(RUNS)) -o $@ --force --quiet

$(OUT)/filters-%.png: $(OUT)/%/runs/random/$(FIRST)/metrics.json $(OUT)/%/runs/transfer/$(FIRST)/metrics.json
	wsurgery filters $(foreach run,$(^D),$(run)/init.safetensors $(run)) -o $@ --force --quiet

FIRST_LAYERS = $$(call source,$$*,$(FIRST)) $(foreach arm,meanvar random,$(OUT)/%/init/$(arm)/$(FIRST).safetensors)
.SECONDEXPANSION:
$(OUT)/conv1-%.png: $(FIRST_LAYERS)
	wsurgery filters $^ -o $@ --force --quiet

$(OUT)/histogram-%.png: $(FIRST_LAYERS)
	wsurgery histogram $^ -o $@ --force --quiet
