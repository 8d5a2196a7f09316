"""The steps of the demo, each a function that takes the scene and the step it reports to."""
