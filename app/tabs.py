TABS = {}
