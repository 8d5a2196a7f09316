# Compiled as it is: schema.py has nothing that C types would speed up.
