"""Entry point of `python -m evaluation.lcm`; see `evaluation.comparison.distil_lcm`."""

from evaluation.comparison.distil_lcm import main

if __name__ == "__main__":
    main()
