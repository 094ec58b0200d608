# SPDX-License-Identifier: Apache-2.0
"""Chat templates: jinja2 templates that format a conversation as text."""

from covrl.data.chat.template import ChatTemplate as ChatTemplate
from covrl.data.chat.template import TemplateRefusal as TemplateRefusal
