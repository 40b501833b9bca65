"""Content-addressed artifacts: keys, shards, commit, resume, verify (`docs/artifacts.md`)."""
