"""How the page looks: the reports' colours and shapes (tasks/page.py), on Gradio's parts too.

Fonts are the system's: a page that is made for one's own machine asks no other for anything.
"""

from typing import Any

import gradio as gr

from tasks import charts, page

FONTS = ("system-ui", "sans-serif")
MONO_FONTS = ("ui-monospace", "monospace")
AGAINST_LIGHT, AGAINST_DARK = "--against: #b4552d;", "--against: #e8a27c;"

COLOURS = {
    "body_background_fill": "var(--paper)",
    "body_text_color": "var(--ink)",
    "body_text_color_subdued": "var(--muted)",
    "background_fill_primary": "var(--card)",
    "background_fill_secondary": "var(--paper)",
    "border_color_primary": "var(--line)",
    "border_color_accent": "var(--accent)",
    "border_color_accent_subdued": "var(--line)",
    "color_accent_soft": "color-mix(in srgb, var(--accent) 12%, var(--card))",
    "block_background_fill": "var(--card)",
    "block_border_color": "var(--line)",
    "block_label_background_fill": "var(--card)",
    "block_label_text_color": "var(--muted)",
    "block_title_text_color": "var(--muted)",
    "block_info_text_color": "var(--muted)",
    "panel_background_fill": "var(--card)",
    "panel_border_color": "var(--line)",
    "accordion_text_color": "var(--ink)",
    "input_background_fill": "var(--card)",
    "input_background_fill_focus": "var(--card)",
    "input_border_color": "var(--line)",
    "input_border_color_focus": "var(--accent)",
    "input_placeholder_color": "var(--muted)",
    "slider_color": "var(--accent)",
    "loader_color": "var(--accent)",
    "button_primary_background_fill": "var(--accent)",
    "button_primary_background_fill_hover": "color-mix(in srgb, var(--accent) 88%, var(--ink))",
    "button_primary_border_color": "var(--accent)",
    "button_primary_text_color": "var(--card)",
    "button_secondary_background_fill": "var(--card)",
    "button_secondary_background_fill_hover": "var(--paper)",
    "button_secondary_border_color": "var(--line)",
    "button_secondary_text_color": "var(--ink)",
    "button_secondary_text_color_hover": "var(--ink)",
}
SHAPES = {
    "color_accent": "var(--accent)",
    "block_radius": "10px",
    "container_radius": "10px",
    "input_radius": "8px",
    "button_large_radius": "8px",
    "button_medium_radius": "8px",
    "button_small_radius": "8px",
    "button_large_text_weight": "600",
    "block_label_text_size": "13px",
    "block_title_text_size": "13px",
    "block_title_text_weight": "500",
    "input_text_size": "16px",  # below it a phone zooms in when a field is touched
    "block_shadow": "none",
    "block_border_width": "1px",
    "layout_gap": "14px",
}


def theme() -> Any:
    """Gradio's plainest theme in the reports' colours; the same names are light or dark by the style sheet."""
    both = COLOURS | {f"{name}_dark": colour for name, colour in COLOURS.items()}
    base = gr.themes.Base(font=FONTS, font_mono=MONO_FONTS, text_size="md")
    return base.set(
        **both, **SHAPES, block_shadow_dark="none", input_shadow="none", input_shadow_focus="none"
    )


# Answers stand inside `.lexloom`, so that the reports' rules (`body`, `svg`, `table`) leave Gradio's parts alone.
HEAD = f"""<style>
:root {{ {page.LIGHT} {AGAINST_LIGHT} color-scheme: light; }}
.dark {{ {page.DARK} {AGAINST_DARK} color-scheme: dark; }}
.lexloom {{ {page.SHAPES} {charts.CSS} }}
</style>"""

CSS = """
.gradio-container { max-width: 1120px !important; margin: 0 auto !important; padding: 40px 24px !important; }
"""
