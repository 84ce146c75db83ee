"""Files written whole, where they are, and work shared between processes."""
