"""One thin file per stage: read config, open parents, call the domain, commit an artifact."""
