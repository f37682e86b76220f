"""The producer: runs a frozen backbone over images and publishes what its layers say."""
