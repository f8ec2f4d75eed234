"""Event logs and catalogues as tables: reading, diagnosing, matching ids."""
