"""A component made to be hurt: every way in which a handler can behave badly, on the real kernel."""
