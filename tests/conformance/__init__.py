"""diffusers' own tests of pipelines, run against ours."""
