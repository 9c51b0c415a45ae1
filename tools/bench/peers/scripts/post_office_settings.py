"""Django's settings for django-post-office; runs in the peers' own interpreter."""

from __future__ import annotations

import os

SECRET_KEY = "of no use to anybody"
USE_TZ = True
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
INSTALLED_APPS = ["django.contrib.contenttypes", "post_office"]
DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": os.path.join(os.environ["BENCH_HOME"], "db.sqlite3"),
        "OPTIONS": {"timeout": 60},
    }
}
TEMPLATES = [{"BACKEND": "django.template.backends.django.DjangoTemplates", "APP_DIRS": True}]
EMAIL_BACKEND = "post_office.EmailBackend"
EMAIL_HOST = "127.0.0.1"
EMAIL_PORT = int(os.environ["BENCH_PORT"])
POST_OFFICE = {"BATCH_SIZE": 2000, "THREADS_PER_PROCESS": 10, "LOG_LEVEL": 1}
LOGGING = {"version": 1, "disable_existing_loggers": True}
