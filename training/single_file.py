"""Export a student as one file: `python -m training.single_file DIR --output student.safetensors`."""

from training.publishing.single_file.export import main

if __name__ == "__main__":
    main()
