"""Images that do not belong: what finds them, and what is found where there are none."""
