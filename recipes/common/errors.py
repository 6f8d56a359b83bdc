"""The one error of recipes."""


class RecipeError(Exception):
    """Something the user can mend; the message names the value, the rule and the remedy."""
