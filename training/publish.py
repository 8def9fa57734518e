"""Publish a finished run on the Hub: `python -m training.publish DIR --repo_id user/my-student`."""

from training.publishing.command import main

if __name__ == "__main__":
    main()
