-- Passwords of the three roles that store/bootstrap.sql made, from the environment of psql. A variable that is not set
-- ends the script. To change a password later, run it again and start the services anew.
\set ON_ERROR_STOP on
\getenv owner FAAS_OWNER_PASSWORD
\getenv app FAAS_APP_PASSWORD
\getenv keeper FAAS_KEEPER_PASSWORD
ALTER ROLE faas_owner PASSWORD :'owner';
ALTER ROLE faas_app PASSWORD :'app';
ALTER ROLE faas_keeper PASSWORD :'keeper';
