"""The engine: processes that speak DNS and SMTP; never imported by `mailstrom`, only started."""
