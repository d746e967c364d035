"""Where state lasts: mechanism only. No component's table is here."""
