"""The `wsurgery` command. What takes long to import is imported when signals are heeded."""


def main() -> None:
    """Run the command line."""
    try:
        from wsurgery import ending

        ending.heed_signals()
        from wsurgery.command_line import run

        run()
    except KeyboardInterrupt:  # before they were
        raise SystemExit(130) from None


if __name__ == "__main__":
    main()
