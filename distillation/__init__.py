"""The method as pure tensor code: noise schedule, student, teacher and the two objectives of ADD (2311.17042)."""
