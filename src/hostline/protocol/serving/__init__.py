"""What a server decides: whom it accepts, which call runs, what a user may cost, which processes are started."""
