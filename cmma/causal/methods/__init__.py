"""The methods of `cmma trace`, one module each, with `run(model, samples, config, dictionary) -> Findings`."""
