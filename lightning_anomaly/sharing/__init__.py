"""An analysis that the processes of a training share: each takes some of the filters of every layer."""
