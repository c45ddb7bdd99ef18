"""A study: what it makes, how it resumes, and where its images and records are."""
