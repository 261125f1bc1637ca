"""Recipes: the rule for a whole model, one family a file."""

from fanin.recipes import auto as auto
from fanin.recipes import classic as classic
from fanin.recipes.registry import ALIASES, REGISTRY, Recipe, RecipeFunction, recipe_named, register, resolve

__all__ = ["ALIASES", "REGISTRY", "Recipe", "RecipeFunction", "recipe_named", "register", "resolve"]
