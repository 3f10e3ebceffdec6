"""From a frozen rule to a logged draw: validation, uniforms, the snapshot of a policy."""
