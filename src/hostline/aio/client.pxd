# Compiled as it is: client.py has nothing that C types would speed up.
