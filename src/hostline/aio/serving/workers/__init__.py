"""Several processes on one listening socket: who starts and ends them, what each does, what they tell."""
