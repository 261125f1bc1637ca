"""Other people's tools, each in a module that imports the tool; nothing here is imported by the rest of fanin."""
