"""The method as pure tensor code: noise schedule, student, teacher and the losses of ADD (2311.17042)."""
