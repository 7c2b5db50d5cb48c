"""Recipes: search, retrain, baselines. Each reads top to bottom; they meet in ticket files."""

from gebt.recipes import baselines as baselines
from gebt.recipes import retrain as retrain
from gebt.recipes import search as search
