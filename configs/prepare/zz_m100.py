"""column map"""
from pinjax.data.sources import column_map
def get_config():
    c=column_map.default(); c.events.user="user"; c.events.item="item"; c.events.time="time"; c.events.time_unit="ms"; c.events.duration="dur"; c.events.action="action"; c.events.surface=("surface",)
    return c
