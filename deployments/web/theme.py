"""The style of the page: the colours and shapes of the reports (tasks/display/colours.py), for Gradio too.

Fonts are the system's, so that none is loaded from another host.
"""

from typing import Any

import gradio as gr

from lexloom.tasks.display import colours
from lexloom.tasks.display.templates import style

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
    "block_padding": "10px 14px",
    "input_padding": "4px 0",
    "button_border_width": "1px",
    "layout_gap": "14px",
}


def theme() -> Any:
    """Return Gradio's base theme in the reports' colours, which the style sheet makes light or dark."""
    both = COLOURS | {f"{name}_dark": colour for name, colour in COLOURS.items()}
    base = gr.themes.Base(font=FONTS, font_mono=MONO_FONTS, text_size="md")
    return base.set(
        **both, **SHAPES, block_shadow_dark="none", input_shadow="none", input_shadow_focus="none"
    )


# Results are inside `.lexloom`, so that the reports' rules (for `body`, `svg`) don't apply to Gradio's parts.
HEAD = f"""<style>
:root {{ {colours.LIGHT} {AGAINST_LIGHT} color-scheme: light; }}
.dark {{ {colours.DARK} {AGAINST_DARK} color-scheme: dark; }}
body {{ background: var(--paper) !important; color: var(--ink); }}
.lexloom {{ {style()} }}
.lexloom {{
  color: var(--ink); font: 15px/1.5 system-ui, sans-serif; font-variant-numeric: tabular-nums;
  .columns {{ margin-top: 14px; }}
  > .card + .card {{ margin-top: 14px; }}
  section {{ margin-top: 28px; }}
  header .note {{ overflow-wrap: anywhere; margin-top: 4px; }}
  code {{ font: 13px/1.6 ui-monospace, monospace; white-space: nowrap; }}
  .missing p + p {{ margin-top: 6px; }}
  .missing code, .seen code {{
    padding: 2px 6px; border: 1px solid var(--line); border-radius: 5px; background: var(--paper);
  }}
  .problem {{
    padding: 12px 16px; background: var(--card); border: 1px solid var(--line);
    border-left: 3px solid var(--against); border-radius: 10px; overflow-wrap: anywhere;
  }}
  .verdict {{ display: flex; gap: 14px; align-items: baseline; flex-wrap: wrap; }}
  .verdict b {{ font-size: 28px; font-weight: 650; letter-spacing: -.015em; }}
  .verdict span {{ font-size: 20px; color: var(--muted); }}
  .shaded {{ font: 17px/1.9 Georgia, serif; white-space: pre-wrap; overflow-wrap: anywhere; }}
  mark {{
    --tint: var(--accent); color: inherit; border-radius: 4px; padding: 1px 2px; margin: 0 -2px;
    background: color-mix(in srgb, var(--tint) calc(var(--weight) * 45%), transparent);
  }}
  mark.against {{ --tint: var(--against); }}
  .columns .card + .card i {{ --accent: var(--against); }}
  .unread, .prompt {{ color: var(--muted); }}
  .sample {{ font-size: 17px; line-height: 1.7; min-height: 1.7em; }}
  .caret {{
    display: inline-block; width: 2px; height: 1.1em; margin-left: 2px; vertical-align: -.15em;
    background: var(--accent); animation: lexloom-blink 1s steps(2) infinite;
  }}
  .seen {{ display: flex; flex-wrap: wrap; gap: 6px; }}
  .seen:not(:empty) {{ margin-top: 10px; }}
  .near li {{ display: block; }}
  .near li > button, .near li:not(:has(button)) {{
    display: grid; grid-template-columns: minmax(0, 1fr) minmax(60px, 38%) 52px;
    gap: 12px; align-items: center;
    width: 100%; padding: 3px 6px; margin: 0 -6px; box-sizing: content-box;
    font: inherit; color: inherit; text-align: left; background: none; border: 0; border-radius: 6px;
  }}
  .near button {{ cursor: pointer; }}
  .near button:hover {{ background: color-mix(in srgb, var(--accent) 10%, transparent); }}
  .near button:focus-visible {{ outline: 2px solid var(--accent); outline-offset: 1px; }}
  .beside {{ display: grid; gap: 14px; grid-template-columns: minmax(260px, 1fr) minmax(0, 2.2fr); }}
  .beside .near li > button {{ grid-template-columns: minmax(0, 1fr) 72px 40px; }}
  .map {{ margin-top: 8px; }}
  .map-narrow {{ display: none; }}
  .map .word:first-child circle {{ opacity: 1; r: 5px; }}
  .map .word:first-child text {{ font-weight: 700; fill: var(--accent); }}
  @media (max-width: 760px) {{ .beside {{ grid-template-columns: minmax(0, 1fr); }} }}
  @media (max-width: 600px) {{ .map-wide {{ display: none; }} .map-narrow {{ display: block; }} }}
}}
@keyframes lexloom-blink {{ to {{ visibility: hidden; }} }}
@media (prefers-reduced-motion: reduce) {{ .lexloom .caret {{ animation: none; }} }}
.gradio-container .main {{ padding: 40px 24px; }}
.gradio-container main.contain {{ width: 100%; max-width: 1072px; margin: 0 auto !important; }}
.gradio-container .html-container {{ padding: 0 !important; }}
.gradio-container .tabitem {{ padding: 14px 0; border: 0; }}
.gradio-container textarea, .gradio-container input {{ box-shadow: none !important; }}
.gradio-container :is(button, input[type="range"], [role="tab"]):focus-visible {{
  outline: 2px solid var(--accent) !important; outline-offset: 2px;
}}
.gradio-container .block:focus-within:has(textarea, input[type="text"], input[type="number"]),
.gradio-container .choose:focus-within .wrap {{
  border-color: var(--accent); box-shadow: 0 0 0 1px var(--accent);
}}
.gradio-container .tall textarea {{ min-height: 88px; }}
.gradio-container .choose input {{ font-size: 15px; text-overflow: ellipsis; padding-right: 24px; }}
.gradio-container .purpose {{ align-items: center; flex-wrap: nowrap; }}
.gradio-container .purpose button {{ font-weight: 500; }}
.gradio-container .knobs, .gradio-container .knobs > * {{ display: block; border: 0; background: none; }}
.gradio-container .knobs .form {{
  display: grid; gap: 4px 14px; background: none; border: 0;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 280px), 1fr));
}}
.gradio-container input[type="range"]::-webkit-slider-thumb {{ background: var(--accent); }}
.gradio-container input[type="range"]::-moz-range-thumb {{ background: var(--accent); }}
.gradio-container button {{ white-space: nowrap; }}
.gradio-container :is(.ask, .inline) button {{ flex: 0 0 auto; min-width: 132px !important; }}
.gradio-container .inline button {{ align-self: stretch; }}
@media (max-width: 600px) {{
  .gradio-container .main {{ padding: 24px 14px; }}
  .gradio-container .ask button {{ flex-grow: 1; }}
  .gradio-container .inline button {{ flex: 1 0 100%; }}
  .gradio-container .choose input {{ font-size: 13px; }}
}}
</style>"""
