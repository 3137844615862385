"""THE STORY: prepare -> run -> finish, in one direction."""
