"""Table 2 of the paper on the tiny world: a teacher with fast samplers, and its distillation by ADD and by LCM."""
