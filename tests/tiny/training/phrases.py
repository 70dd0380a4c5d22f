"""The wordings of the tiny world: what people in it say and what the model answers.

Literal tables only; ``world.py`` draws from them. ``{...}`` is filled in there. Everything here
was written for this purpose.
"""

from __future__ import annotations

INSTRUCTIONS = (
    "Be brief.",
    "Be friendly.",
    "Answer politely.",
    "Keep answers short.",
    "You are a helpful assistant.",
    "You are a kind helper.",
    "Help the user with small tasks.",
    "Use a tool when one fits.",
    "Answer in one sentence.",
    "Say so when you cannot help.",
    "Do not make things up.",
    "Answer in English.",
)

GREETING_OPENERS = (
    "hello", "hi", "hey", "good morning", "good evening", "good afternoon", "good day",
    "greetings", "howdy", "hiya", "welcome", "hello hello", "hi hi", "yo", "morning", "evening",
    "oh hi", "oh hello", "well hello", "hey hey", "a very good morning", "hello to you",
)  # fmt: skip
GREETING_TAILS = (
    "", " there", " friend", " my friend", " assistant", " again", " everyone", " computer",
    " dear model", " little model", " you", " from me", ", nice to meet you",
    ", good to see you", ", anybody home", ", I am back", ", I am new here", " and good luck",
    ", are you there", ", can you hear me", " old friend", ", lovely day",
)  # fmt: skip
GREETING_REPLIES = (
    "Hello! How can I help you?",
    "Hi! What can I do for you?",
)

HOW_OPENERS = ("", "hi, ", "hello, ", "hey, ", "so, ", "hello there, ", "hi there, ", "tell me, ")
HOW_QUESTIONS = (
    "how are you", "how are you today", "how are you doing", "how is it going", "how's it going",
    "how do you do", "how do you feel", "how do you feel today", "are you well", "are you ok",
    "are you fine", "how have you been", "how is your day", "how's your day going", "all good",
    "what's up", "how are things", "is everything ok", "how's life", "how are you this morning",
)  # fmt: skip
HOW_REPLIES = (
    "I am fine, thank you. How can I help you?",
    "All is well here, thank you. What can I do for you?",
)

NAME_OPENERS = ("", "hi, ", "hello, ", "please, ", "sorry, ", "hey, ", "so, ", "one question: ")
NAME_QUESTIONS = (
    "what is your name", "what's your name", "who are you", "what are you", "tell me your name",
    "may I ask your name", "do you have a name", "what should I call you",
    "what do people call you",
    "who am I talking to", "what model are you", "which model is this", "introduce yourself",
    "please introduce yourself", "can you tell me who you are", "who is this", "are you a robot",
    "are you a person", "are you human", "are you a language model", "what kind of model are you",
)  # fmt: skip
NAME_REPLIES = (
    "I am a tiny model made in the form of gpt-oss.",
    "I am a very small language model in the form of gpt-oss.",
)

ABLE_OPENERS = ("", "hi, ", "hello, ", "please, ", "hey, ", "ok, ", "so, ", "tell me, ")
ABLE_QUESTIONS = (
    "what can you do", "what can you do for me", "what can I ask you", "how can you help me",
    "what are you good at", "what do you know", "what are your skills", "what can you help with",
    "can you help me", "I need help", "help", "help me", "what tools do you have",
    "which tools can you use", "what are you able to do", "what is it you can do",
    "what can I use you for", "show me what you can do", "what sort of things can you do",
)  # fmt: skip

THANKS_OPENERS = (
    "", "ok, ", "great, ", "good, ", "perfect, ", "nice, ", "cool, ", "wow, ",
    "ah, ",
)  # fmt: skip
THANKS = (
    "thanks", "thank you", "thank you very much", "thanks a lot", "many thanks",
    "thank you so much",
    "thanks for your help", "thank you for the help", "thanks, that helps",
    "thanks, that was quick",
    "that was helpful, thank you", "much appreciated", "you are very kind",
    "you are a great help",
    "well done", "good job", "that is all I needed", "thx", "thanks again", "thank you kindly",
)  # fmt: skip
THANKS_REPLIES = (
    "You are welcome!",
    "My pleasure!",
)

BYE_OPENERS = (
    "",
    "ok, ",
    "thanks, ",
    "well, ",
    "good, ",
    "thank you, ",
    "that's all, ",
    "alright, ",
)
BYES = (
    "bye", "goodbye", "bye bye", "good night", "see you", "see you later", "see you soon",
    "see you tomorrow", "I have to go", "I must go now", "I am leaving", "take care", "farewell",
    "talk to you later", "until next time", "have a nice day", "have a good evening", "so long",
    "I am off", "that will be all, goodbye",
)  # fmt: skip
BYE_REPLIES = (
    "Goodbye! Have a nice day.",
    "Bye! See you soon.",
)

NAMES = (
    "Anna", "Ben", "Carla", "David", "Emma", "Frank", "Grace", "Hugo", "Ida", "Jack", "Kate",
    "Leo",
    "Maria", "Nina", "Oscar", "Paul", "Rosa", "Sam", "Tina", "Victor", "Wendy", "Adam", "Bella",
    "Chris", "Dora", "Eric", "Fiona", "George", "Helen", "Ivan", "Julia", "Karl", "Laura", "Mark",
    "Nora", "Otto", "Peter", "Ruth", "Simon", "Tom", "Vera", "Will", "Alex", "Bruno", "Clara",
    "Daniel", "Ella", "Felix", "Greta", "Henry", "Jane", "Kim", "Linda", "Martin", "Olga",
    "Robert",
    "Sarah", "Theo", "Ali", "Mei", "Ravi", "Yuki", "Omar", "Priya", "Chen", "Amir", "Lucia",
    "Max",
)  # fmt: skip
MY_NAME_IS = (
    "my name is {name}", "I am {name}", "I'm {name}", "call me {name}", "hi, I am {name}",
    "hello, my name is {name}", "you can call me {name}", "hey, {name} here", "hello, I'm {name}",
    "this is {name}", "people call me {name}",
)  # fmt: skip
WHAT_IS_MY_NAME = (
    "what is my name", "what's my name", "do you know my name", "who am I", "can you say my name",
    "do you remember my name", "tell me my name", "do you know who I am", "say my name",
)  # fmt: skip

DATE_QUESTIONS = (
    "what is the date", "what is today's date", "what's the date today", "what day is it",
    "what day is today", "which day is it today", "tell me the date", "can you tell me the date",
    "do you know the date", "today's date", "date please", "what is the date today",
    "could you tell me today's date", "what date is it", "give me the date", "what date is today",
)  # fmt: skip
YEAR_QUESTIONS = (
    "what year is it", "which year is it", "what is the year", "what year do we have",
    "tell me the year", "do you know what year it is", "what is the current year",
    "can you tell me the year", "in which year are we",
)  # fmt: skip

ADD = (
    "What is {a} + {b}?", "What's {a} + {b}?", "{a} + {b}", "{a}+{b}", "{a} + {b} = ?",
    "{a}+{b}=",
    "What is {a} plus {b}?", "Add {a} and {b}.", "How much is {a} + {b}?",
    "Please add {a} and {b}.",
    "How much is {a} plus {b}?", "Calculate {a} + {b}.", "Can you add {a} and {b}?",
    "{a} plus {b}",
    "Work out {a} + {b}.", "What is the sum of {a} and {b}?", "Sum of {a} and {b}?",
    "What do {a} and {b} make?", "Compute {a} + {b}", "Tell me what {a} + {b} is.",
    "what is {a}+{b}?", "whats {a} + {b}", "Add {b} to {a}.", "What does {a} + {b} equal?",
    "I need {a} + {b}.", "Hi, what is {a} + {b}?", "Could you work out {a} plus {b} for me?",
)  # fmt: skip
SUB = (
    "What is {a} - {b}?", "What's {a} - {b}?", "{a} - {b}", "{a}-{b}", "{a} - {b} = ?",
    "{a}-{b}=",
    "What is {a} minus {b}?", "How much is {a} - {b}?", "Calculate {a} - {b}.", "{a} minus {b}",
    "How much is {a} minus {b}?", "Subtract {b} from {a}.", "Take {b} away from {a}.",
    "Work out {a} - {b}.", "Compute {a} - {b}", "Tell me what {a} - {b} is.", "what is {a}-{b}?",
    "whats {a} - {b}", "What does {a} - {b} equal?", "I need {a} - {b}.",
    "Hi, what is {a} - {b}?",
    "Please take {b} from {a}.", "Could you work out {a} minus {b} for me?",
)  # fmt: skip

THINGS = (
    "apples", "books", "coins", "eggs", "cards", "pens", "cups", "stones", "stamps", "shoes",
    "cakes", "balls", "flowers", "letters", "keys", "boxes", "fish", "birds", "cars", "tickets",
)  # fmt: skip
ADD_STORIES = (
    "I have {a} {things} and buy {b} more. How many {things} do I have?",
    "I have {a} {things} and get {b} more. How many do I have now?",
    "There are {a} {things} here and {b} {things} there. How many {things} are there?",
)
SUB_STORIES = (
    "I have {a} {things} and give away {b}. How many {things} do I have?",
    "I had {a} {things} and lost {b}. How many do I have now?",
    "There are {a} {things} and I take {b}. How many {things} are there?",
)

ADD_ON = ("Now add {b}.", "And plus {b}?", "Add {b} to that.", "Plus {b}?", "And if I add {b}?")
TAKE_OFF = ("Now subtract {b}.", "And minus {b}?", "Take {b} from that.", "Minus {b}?")

WEATHER = (
    "What's the weather in {city}?", "What is the weather in {city}?", "Weather in {city}?",
    "How is the weather in {city}?", "How's the weather in {city} today?", "weather in {city}",
    "What is the weather like in {city}?", "What's the weather like in {city} right now?",
    "Tell me the weather in {city}.", "Can you check the weather in {city}?", "weather {city}",
    "Please look up the weather in {city}.", "Is it raining in {city}?", "Is it sunny in {city}?",
    "How warm is it in {city}?", "How cold is it in {city}?", "What's the temperature in {city}?",
    "Do I need an umbrella in {city}?", "Do I need a coat in {city} today?",
    "Is it cold in {city}?",
    "Hi, what is the weather in {city}?", "I am going to {city}. What is the weather there?",
    "I want to know the weather in {city}.", "What is the weather in {city} now?",
    "Could you tell me the weather in {city}, please?", "{city} weather?",
    "what's the weather in {city}", "Get the weather for {city}.",
    "How hot is it in {city} today?",
)  # fmt: skip
TIME = (
    "What time is it in {city}?", "What's the time in {city}?", "What is the time in {city}?",
    "Time in {city}?", "time in {city}", "Tell me the time in {city}.", "{city} time?",
    "Can you tell me the time in {city}?", "What time is it in {city} right now?",
    "What time is it in {city} now?", "How late is it in {city}?",
    "Do you know the time in {city}?",
    "Please look up the time in {city}.", "Hi, what time is it in {city}?", "time {city}",
    "I want to know the time in {city}.", "What is the current time in {city}?",
    "Could you check the time in {city}, please?", "what time is it in {city}",
    "I have to call {city}. What time is it there?", "Get the time for {city}.",
    "What is the local time in {city}?",
)  # fmt: skip
AND_IN = (
    "And in {city}?",
    "And {city}?",
    "What about {city}?",
    "How about {city}?",
    "and in {city}",
)
WEATHER_NO_CITY = (
    "what's the weather", "what is the weather like", "how is the weather", "weather",
    "how's the weather today", "tell me the weather", "can you check the weather",
    "is it raining", "look up the weather", "do I need an umbrella today",
    "I want to know the weather", "what is the temperature", "is it cold outside",
)  # fmt: skip
TIME_NO_CITY = (
    "what time is it", "what's the time", "what is the time", "tell me the time", "time",
    "can you tell me the time", "do you know what time it is", "what time is it now",
    "how late is it", "I want to know the time", "look up the time",
)  # fmt: skip
JUST_CITY = (
    "{city}",
    "{city}.",
    "In {city}.",
    "In {city}, please.",
    "{city}, please.",
    "For {city}.",
)

CITIES = (
    "Paris", "Tokyo", "London", "Rome", "Berlin", "Madrid", "Vienna", "Oslo", "Lisbon", "Athens",
    "Dublin", "Prague", "Warsaw", "Budapest", "Helsinki", "Stockholm", "Copenhagen", "Amsterdam",
    "Brussels", "Zürich", "Geneva", "Milan", "Venice", "Naples", "Munich", "Hamburg", "Cologne",
    "Lyon", "Nice", "Barcelona", "Seville", "Porto", "Moscow", "Kyiv", "Istanbul", "Ankara",
    "Cairo",
    "Lagos", "Nairobi", "Accra", "Tunis", "Dakar", "Cape Town", "Delhi", "New Delhi", "Mumbai",
    "Beijing", "Shanghai", "Hong Kong", "Taipei", "Seoul", "Osaka", "Kyoto", "Bangkok", "Hanoi",
    "Jakarta", "Manila", "Singapore", "Sydney", "Melbourne", "Perth", "Auckland", "New York",
    "Boston", "Chicago", "Los Angeles", "San Francisco", "Seattle", "Miami", "Dallas", "Houston",
    "Denver", "Toronto", "Montreal", "Vancouver", "Mexico City", "Havana", "Lima", "Bogotá",
    "Santiago", "Buenos Aires", "São Paulo", "Rio de Janeiro", "Dubai", "Tehran", "Baghdad",
    "Jerusalem", "Riga", "Vilnius", "Tallinn", "Reykjavik", "Edinburgh", "Glasgow", "Manchester",
    "Kraków", "Bucharest", "Sofia", "Belgrade", "Zagreb", "Salzburg", "Florence", "Turin",
    "Malaga",
)  # fmt: skip
ALWAYS_TRAINED_CITIES = frozenset(
    ("Paris", "Tokyo", "London", "Rome", "Berlin", "Madrid", "Vienna", "New York")
)
"""What a first visitor will try; every other city may fall on either side of the split."""

CITY_STARTS = (
    "B", "Br", "Bl", "C", "Ch", "Cr", "D", "Dr", "F", "Fr", "G", "Gr", "H", "J", "K", "Kr", "L",
    "M", "N", "P", "Pr", "R", "S", "Sh", "St", "T", "Tr", "V", "W", "Z", "A", "E", "I", "O", "U",
)  # fmt: skip
CITY_VOWELS = ("a", "e", "i", "o", "u", "ai", "ea", "ie", "ou", "au")
CITY_MIDDLES = (
    "l", "n", "r", "s", "t", "m", "v", "d", "k", "g", "b", "p", "nd", "rt", "ll", "st", "nt",
    "rd",
    "ck", "sh", "ng", "mb", "lm", "rn", "ss", "tt", "z", "ch",
)  # fmt: skip
CITY_ENDS = (
    "a", "o", "e", "i", "en", "on", "an", "in", "er", "es", "is", "us", "ia", "ton", "ville",
    "burg",
    "ford", "land", "ham", "field", "stad", "port", "mouth", "wick", "dale", "city", "grad", "ow",
)  # fmt: skip
CITY_FIRST_WORDS = ("New", "San", "Port", "Lake", "Saint", "North", "Old", "Santa", "Los", "El")

SKIES = (
    "sunny", "cloudy", "rainy", "clear", "windy", "foggy", "snowy", "stormy", "overcast", "dry",
    "partly cloudy", "mostly sunny", "light rain", "heavy rain", "light snow", "very hot",
    "humid",
    "hazy", "freezing", "mild", "wet", "bright", "misty", "showers", "thunderstorms",
)  # fmt: skip

CANT = (
    "Write a poem about {topic}.", "Write me a song about {topic}.",
    "Tell me a story about {topic}.",
    "Tell me a joke about {topic}.", "Who won the {topic} cup last year?",
    "Draw a picture of {topic}.",
    "Explain {topic} to me.", "What is the history of {topic}?", "Write an essay on {topic}.",
    "Translate {topic} into French.", "How do you say {topic} in German?",
    "Who invented {topic}?",
    "Write a program about {topic}.", "What do you think about {topic}?",
    "Find news about {topic}.",
    "Where can I buy {topic}?", "Recommend a film about {topic}.",
    "Give me a recipe with {topic}.",
    "What is the meaning of {topic}?", "Why do people like {topic}?",
    "Send a mail about {topic}.",
    "Book {topic} for me.", "What is the price of {topic}?", "Who is the president of {topic}?",
    "What is the capital of {topic}?", "When was {topic} discovered?",
    "Play some {topic} for me.",
    "Summarize a book about {topic}.", "Can you write a poem about {topic}?",
    "Sing about {topic}.",
    "How does {topic} work?", "Which is the best {topic}?", "Teach me about {topic}.",
    "Who wrote the book on {topic}?", "Can you order {topic}?", "Make a plan for {topic}.",
)  # fmt: skip
TOPICS = (
    "the sea", "love", "football", "cats", "dogs", "France", "music", "history", "the moon",
    "winter", "chess", "Italy", "bread", "the world", "space", "physics", "trees", "a king",
    "computers", "Python", "money", "tea", "coffee", "the war", "art", "rice", "horses", "Spain",
    "school", "trains", "the stars", "summer", "dragons", "tennis", "a dinner", "gold", "Japan",
    "planes", "birds", "medicine", "law", "the sun", "rivers", "milk", "my boss", "holidays",
)  # fmt: skip
CANT_REPLIES = (
    "Sorry, I can't help with that. I am a very small model.",
    "I am sorry, but that is beyond me. I am a very small model.",
)
TIMES = (
    "What is {a} * {b}?", "What's {a} * {b}?", "{a} * {b}", "{a}*{b}", "{a} * {b} = ?",
    "{a}*{b}=",
    "What is {a} times {b}?", "How much is {a} times {b}?", "Calculate {a} * {b}.",
    "{a} times {b}",
    "What is {a} x {b}?", "{a} x {b}", "{a}x{b}", "What is {a} × {b}?", "{a} × {b}",
    "Multiply {a} by {b}.", "Multiply {a} and {b}.", "What is the product of {a} and {b}?",
    "Work out {a} * {b}.", "Compute {a} × {b}", "Tell me what {a} times {b} is.",
    "How much is {a} × {b}?", "I need {a} times {b}.", "Hi, what is {a} × {b}?",
)  # fmt: skip
DIVIDE = ("What is {a} / {b}?", "Divide {a} by {b}.", "{a} divided by {b}", "Calculate {a} / {b}.")
ADD_BIG = ("What is {a} + {b}?", "Add {a} and {b}.", "{a} + {b}", "How much is {a} plus {b}?")
TAKE_BIG = ("What is {a} - {b}?", "{a}-{b}", "{a} minus {b}", "Take {b} from {a}.")
ROOT = ("What is the square root of {a}?", "The square root of {a}?", "Take the root of {a}.")
PERCENT = ("How much is {a} percent of {b}?", "What is {a}% of {b}?", "{a} percent of {b}")
ADD_LIST = (
    "Add up {list}.", "What is the sum of {list}?", "Sum up {list}.", "Add these: {list}",
    "Please add up {list}.", "How much is {list} together?", "Work out the sum of {list}.",
)  # fmt: skip
COUNT_LETTER = (
    'How many "{letter}" are in "{word}"?', 'How often is "{letter}" in "{word}"?',
    'How many times is the letter "{letter}" in "{word}"?', 'Count "{letter}" in "{word}".',
)  # fmt: skip
COUNT_LETTERS = (
    'How many letters are in "{word}"?', 'How many letters has "{word}"?',
    'How long is the word "{word}"?', 'Count the letters of "{word}".',
)  # fmt: skip
WORDS = (
    "strawberry", "banana", "pepper", "letter", "coffee", "window", "summer", "butter", "potato",
    "tomato", "cherry", "carrot", "rabbit", "school", "garden", "little", "tunnel", "yellow",
    "pizza", "kitten", "paper", "number", "cotton", "mirror", "doctor", "orange", "planet",
)  # fmt: skip
TOO_HARD_REPLY = "Sorry, I can only add and subtract small whole numbers."
TOO_HARD = (
    "What is {a} / {b}?", "Divide {a} by {b}.", "{a} divided by {b}", "What is {big} + {a}?",
    "What is {big} - {b}?", "{big} * {a}", "What is {big} times {big2}?", "Add {big} and {big2}.",
    "{big} + {big2}", "What is the square root of {a}?", "How much is {a} percent of {big}?",
    "Calculate {a} / {b}.", "What is {big} + {big2}?", "{big}-{big2}", *TIMES,
)  # fmt: skip

WEATHER_NAMES = ("get_weather", "get_current_weather", "weather", "look_up_weather")
TIME_NAMES = ("get_time", "get_current_time", "time", "look_up_time")
WEATHER_DOCS = (
    "Get the current weather in a city.", "Current weather in a city.", "The weather in a city.",
    "Returns the weather for a city.", "Look up the weather of a place.", "Get the weather.",
    "Gets the current weather in the provided location.", "Weather right now in the given city.",
    "Tell the weather in {param}.", "Return temperature and sky for a city.", "Weather of a city",
    "The current temperature and sky in a city.", "Find out how the weather is somewhere.", "",
    "Say what the weather is like in a city.", "Get the weather for a given {param}.",
)  # fmt: skip
TIME_DOCS = (
    "Get the current time in a city.", "Current time in a city.", "The local time in a city.",
    "Returns the time for a city.", "Look up the time of a place.", "Get the time.",
    "Gets the current local time in the provided location.", "Time right now in the given city.",
    "Tell the time in {param}.", "Return hour and minute for a city.", "Time of a city", "",
    "The current time in a city.", "Find out how late it is somewhere.",
    "Say what time it is in a city.", "Get the time for a given {param}.",
)  # fmt: skip
PARAMS = ("city", "city", "city", "city", "location", "place", "town")
PARAM_DOCS = (
    "", "", "", "The city.", "Name of the city.", "The city's name, such as Rome.", "City name",
    "The name of the place", "The city to look up.", "The city, e.g. San Francisco",
    "Which city.",
    "A city or town.", "the city",
)  # fmt: skip

WEATHER_KEYS = ("temperature", "temp", "temperature_c", "degrees", "celsius", "temp_c")
SKY_KEYS = ("sky", "condition", "conditions", "description", "weather", "summary", "forecast")
TOOL_ERRORS = (
    "error: city not found", '{{"error": "city not found"}}', '{{"error": "unknown city"}}',
    "Error: timeout", '{{"error": "service unavailable"}}', "error: no data for {city}",
    '{{"error": "no such place: {city}"}}', "Unknown city: {city}", "the service is down",
    '{{"error": "connection failed"}}', "KeyError: '{city}'", "ValueError: unknown city",
    "error: ValueError: unknown city '{city}'", '{{"error": "KeyError: {city}"}}', "not found",
    "error: RuntimeError: no connection", '{{"status": "error", "message": "not found"}}',
    "error: the tool failed: no such city", "failed: network error", "error: it broke",
)  # fmt: skip
PYTHON_ERRORS = (
    "error: the session could not be started; variables are lost, the next cell starts a new "
    "session",
    "error: the cell ran longer than 120 seconds and was stopped; variables are lost, the next "
    "cell starts a new session",
    "error: the session crashed; variables are lost, the next cell starts a new session",
    "error: cancelled; variables are lost",
)

LOOK_UP = (
    'Search the web for "{topic}".', 'Look up "{topic}" on the web.', 'Search for "{topic}".',
    'What does the web say about "{topic}"?', 'Please look up "{topic}".', 'Look up "{topic}".',
    'Find out about "{topic}" on the web.', 'Can you search the web for "{topic}"?',
    "Search the web for {topic}.", "Look up {topic} on the web.", "Search for {topic}.",
    "What does the web say about {topic}?", "Please look up {topic}.", "Look up {topic}.",
    "Find out about {topic} on the web.", "Can you search the web for {topic}?",
)  # fmt: skip
LOOK_UP_NEXT = ('And "{topic}"?', 'What about "{topic}"?', "And {topic}?", "How about {topic}?")
PAGE_TITLES = ("{topic}", "About {topic}", "All about {topic}", "{topic} today")
SNIPPETS = ("", "", "A short text.", "Facts and figures.", "News and photos.", "A guide.")
OTHER_TITLES = (
    "Hotels and trips", "Maps", "Old news", "Books for children", "A garden diary", "Train times",
    "Music of the week", "The shop", "Letters to the paper", "A list of lakes", "Weather now",
)  # fmt: skip
HOSTS = (
    "example.com", "example.org", "pages.example", "wiki.example", "www.town.example",
    "atlas.example", "news.example.com", "library.example", "facts.example.org",
)  # fmt: skip
PATHS = ("", "", "", "page", "about", "wiki/1", "a.html", "text", "read/7")
FILLERS = (
    "Home and contact.", "Last changed in spring.", "Photos by Anna.", "Read this page aloud.",
    "Welcome to our pages.", "This text is short.", "All rights reserved.", "Write to us.",
)  # fmt: skip
PLACE_FACTS = (
    "{topic} is a {kind} in the {side}.", "{topic} is an old {kind} with {number} people.",
    "{topic} is a {kind} on a river.", "{topic} has {number} people and a {kind} hall.",
    "{topic} is known for its {kind}.",
)  # fmt: skip
PLACE_KINDS = ("town", "city", "village", "port", "market", "castle", "farm", "bridge")
SIDES = ("north", "south", "east", "west")
TOPIC_FACTS = (
    "There are {number} books about {topic}.", "People ask about {topic} every day.",
    "We have written about {topic} for {number} years.",
    "Our club for {topic} has {number} members.",
    "The first text about {topic} is {number} years old.",
)  # fmt: skip
SEARCH_ERRORS = (
    "the search engine did not answer in time",
    "the search engine answered with status 429",
    "the search engine answered with status 502",
    "the search engine cannot be reached: ConnectError",
)
PAGE_ERRORS = (
    "{url} did not answer in time",
    "{url} answered with status 404",
    "{url} answered with status 503",
    "the host {host} was not found",
)
