"""Many deciders, one authority: who draws, who counts, and how they meet."""
