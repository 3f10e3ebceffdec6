"""What the store keeps beside the log: configuration versions, eras, frozen rules."""
