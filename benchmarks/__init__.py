"""What featurestream costs beside the bare tools that it stands on: ratios, measured in turn within one run."""
