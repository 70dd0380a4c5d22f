"""The server as a child process of an application: ``gptoss.spawn``.

wire         what parent and child write to each other through pipes
child        the program that the child runs
supervisor   starts the child, follows its events, starts it again after a crash
spawned      the object that ``spawn`` returns
chat_stream  a reply read over HTTP with nothing but the standard library
pyinstaller  hooks for programs frozen by PyInstaller
"""
