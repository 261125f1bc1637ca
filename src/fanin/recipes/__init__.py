"""Recipes: the rule for a whole model, one family a file.

Published recipes with settings are functions that give a recipe: ``recipes.gpt2(std=0.01)``.
"""

from fanin.recipes import auto as auto
from fanin.recipes import classic as classic
from fanin.recipes.convolutional import convnext, efficientnet, resnet
from fanin.recipes.decoders import llama, llama_torchtitan, olmo, olmo2
from fanin.recipes.deep_transformers import deepnorm, t_fixup
from fanin.recipes.encoders import bert, bert_tf, t5
from fanin.recipes.generative import dcgan, ddpm, dit
from fanin.recipes.gpt import gpt2, gpt_neox, megatron
from fanin.recipes.implicit import siren
from fanin.recipes.mixers import mlp_mixer
from fanin.recipes.recurrent import lstm_keras, lstm_torch
from fanin.recipes.registry import ALIASES, REGISTRY, Recipe, RecipeFunction, recipe_named, register, resolve
from fanin.recipes.reinforcement import ppo
from fanin.recipes.state_space import mamba
from fanin.recipes.unnormalized import fixup
from fanin.recipes.vision_transformers import swin, vit, vit_jax, vit_moco

__all__ = [
    "ALIASES",
    "REGISTRY",
    "Recipe",
    "RecipeFunction",
    "bert",
    "bert_tf",
    "convnext",
    "dcgan",
    "ddpm",
    "deepnorm",
    "dit",
    "efficientnet",
    "fixup",
    "gpt2",
    "gpt_neox",
    "llama",
    "llama_torchtitan",
    "lstm_keras",
    "lstm_torch",
    "mamba",
    "megatron",
    "mlp_mixer",
    "olmo",
    "olmo2",
    "ppo",
    "recipe_named",
    "register",
    "resnet",
    "resolve",
    "siren",
    "swin",
    "t5",
    "t_fixup",
    "vit",
    "vit_jax",
    "vit_moco",
]
