"""``mailstrom-sendmail`` and ``mailstrom-mailq``: what programs call that know no library.

They run once per mail, from cron and PHP, so each loads only what it needs: no click, no asyncio,
no DNS. The command lines are those of sendmail(1) as Postfix has it; docs/howto/sendmail.md lists
every flag.
"""
