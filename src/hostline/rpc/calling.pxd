# Compiled as it is: calling.py has nothing that C types would speed up.
