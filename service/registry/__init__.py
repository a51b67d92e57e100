"""The models in service: found in the folder of bundles, loaded, replaced, dropped."""
