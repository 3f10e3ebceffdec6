"""From a frozen rule to a logged draw: uniforms, the decider, validation of what enters."""
