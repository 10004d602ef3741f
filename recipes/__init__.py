"""Runnable scripts that train real networks under the callbacks, and what they found."""
