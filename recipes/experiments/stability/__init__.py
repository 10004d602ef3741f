"""How much part the Calinski-Harabasz index can have in a verdict that stays the same."""
