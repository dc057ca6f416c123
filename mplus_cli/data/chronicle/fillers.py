"""Sentences that carry no fact: weather, places, meals, walking, talk. `{a|b}` chooses one of the alternatives.

Fields: {f} first name, {s} she/he, {S} She/He, {p} her/his, {P} Her/His, {o} her/him. No filler holds a value of a
closed list of `kinds`, so that no trade, animal, food or instrument stands in a chronicle but as a fact.
"""

# About no one; any of them may open a paragraph.
SCENE_FILLERS = (
    "The {wind|rain|mist|cold} comes over the {hills|fields|roofs|river} and {stays until noon|makes everyone hurry}.",
    "It is {market day|a quiet day|washing day|the first warm day}, and the {square|street} is full of {people|talk}.",
    "{Snow|Rain|Dust} lies on the {roofs|road|steps|walls}, and {nobody|hardly anyone} is {out|in a hurry}.",
    "The {road|path|lane} runs beside the {river|old wall} and {turns at the bridge|is soon lost in the trees}.",
    "All {morning|afternoon} the {bells ring|windows shine|fields smell of hay}.",
    "There is {fresh bread|hot soup|strong tea} on the table, and {room for one more|nobody asks who pays}.",
    "{Somewhere|Across the street|Behind the wall} a {door closes|child is singing|cart goes by|window opens}.",
    "The {summer|winter|spring} was {good|long|short} this year, and {people talk of little else|nobody complains}.",
    "{Nets|Baskets|Wet coats} hang {by the door|along the wall}, and the {yard|step} is {swept clean|still wet}.",
    "{Children|Two old men|Some women} sit on the {wall|steps} and {count the carts|watch the clouds|wait for news}.",
    "The {stove|fire} is {lit early|nearly out|warm}, and the {kettle|pot} begins to {sing|boil}.",
    "A {tall|cheerful} {stranger|traveller} asks the way and is {sent to the inn|gone before noon}.",
    "By {noon|nightfall|evening} the {sky|river|square} is {clear|grey|quiet} again.",
    "The {inn|market|church} is {full|closed|nearly empty} today, and {nobody minds|everyone knows why}.",
    "The {ferry|post} is late again, and {nobody minds|everyone has an opinion}.",
    "On {Mondays|Fridays|Sundays} {the post comes|the bridge is swept|the young people dance}.",
    "Night comes {early|slowly|softly} to these {hills|houses|fields}.",
    "The {stones|stairs|steps} are worn by {many feet|the rain|a hundred winters}.",
    "I {sit down|rest a while|stand on the bridge} and {listen|look at the river}.",
    "Someone has {painted a boat|mended the roof|hung out the washing}, and the street looks {new|better for it}.",
    "Nobody {remembers|knows} who built the {bridge|tower|long wall}, but it still stands.",
    "A letter comes from {the coast|over the hills}, and it is read aloud twice.",
    "A cart comes {up from the coast|over the hill}, and everyone runs to look.",
    "{Grass|Ivy|Moss} grows over the {old gate|steps|wall}, {green|thick} after the rain.",
    "Two doors {down|further on} the talk is of {the weather|old times|other things}.",
    "It is a {small|quiet|good} street to {be old in|come home to|grow up in}.",
    "The {light|smoke|mist} stands still over the {roofs|river|fields}, and {so do I|the day begins}.",
    "My boots are wet, but {the company is good|the fire is warm|the story is worth it}.",
    "The {next|last} house in the {row|lane} has a {green|blue|low} door and {no bell|a loud bell}.",
    "Nothing much happens here, and {people are proud of it|I like it for that|that is the beauty of it}.",
)

# About the person told of last.
PERSON_FILLERS = (
    "{f} {laughs|smiles|shrugs} when I ask about it.",
    "{S} is {seldom|never} {late|in a hurry|tired}, and {people like that|it shows}.",
    "{f} {gets up|is awake} before the {sun|bells|others} and {opens the window|lights the stove|walks to the well}.",
    '"{Sit down|Come in|Stay a while}," says {f}, "{the kettle is on|there is soup enough|it is too wet to walk}."',
    '"{It was a long winter|I would not change a thing}," says {f} and {looks out of the window|laughs}.',
    '"{Ask anyone|Write that down|Believe me}," {s} says, "{it is true|I was there|I never forget a thing}."',
    "{P} {hands|boots|sleeves} are never clean, and {s} does not mind.",
    "{S} tells {long|old|short} stories and forgets {the end|who was in them|nothing}.",
    "When {f} {walks by|comes to market}, {people wave|the children follow|the whole street hears it}.",
    "{f} has a {loud|soft|slow|merry} voice and {a good memory|a quick step|kind eyes}.",
    "{S} {mends|washes|folds} {p} {coat|old shirt} by the {stove|window|light of a candle}.",
    "On {cold|long|wet} evenings {f} sits by the {fire|stove|window} and {thinks|sings a little|says nothing}.",
    "{S} owes nobody {money|a favour|an apology}.",
    "{f} pours two cups and {pushes one across the table|asks where I have been|sits down again}.",
    "{S} {knows|remembers} every {path|house|tree} for {a mile|two miles} around.",
    "The {neighbours|children|old people} {like|trust|tease} {f}, and {s} knows it.",
    "{f} shows me the {garden|cellar|view from the hill}, and we {talk until dark|stand there a while|say little}.",
    "{S} wants {nothing more|a new roof|a dry summer}, {s} says.",
    "Nobody has ever seen {f} {angry|idle|without a hat}.",
    "{S} {hums|talks to the walls|counts the steps} when {s} thinks that nobody is listening.",
    "If it rains, {f} {stays in bed|goes out all the same|sings}.",
    "We {shake hands|share a loaf|drink tea}, {f} and I, and the {afternoon|evening} is soon gone.",
    "{f} {waves|calls} from the {window|gate|other side of the street} and {asks for news|wants to know everything}.",
    "{S} is {older|younger} than {s} looks and {knows it|says so often}.",
    "{f} has {an answer for everything|a laugh like a bell|more hats than friends}, the neighbours say.",
    "{S} once {lost a bet|won a prize|fell in the river}, and the story {is told every winter|grows every year}.",
)

# What goes with a fact just told, by its kind.
KIND_FILLERS: dict[str, tuple[str, ...]] = {
    "home": (
        "From the window {s} can see the {river|hills|whole street}.",
        "The {rooms are small|roof is old|door sticks}, but {it is never cold|{s} would not leave it}.",
        "It is {quiet there|a good place}, {s} says, {but for the bells|and the well is near}.",
    ),
    "trade": (
        "The work is {hard|slow} in {winter|summer}, {s} says, but {somebody has to do it|it keeps {o} young}.",
        "{P} {father|mother} {did|taught {o}} the same.",
        "People come from {miles around|over the hill} and {pay what they can|wait their turn}.",
    ),
    "pet": (
        "The two of them {are seldom apart|share every meal|grow old together}.",
        "It {comes|runs} when it is called, {sometimes|but not in the rain}.",
        "{f} says it is a {foolish|fine|good old} name, and {laughs|that it fits}.",
    ),
    "animal": (
        "It sleeps {by the stove|on {p} coat|where it likes} and is afraid of nobody.",
        "The children {bring it bread|come to look at it}, and it {puts up with them|lets them}.",
        "It is {old and slow|small but clever|no trouble}, {f} says.",
    ),
    "journey": (
        "The road was {long|bad|full of stones}, {and the beds were worse|but {s} would go again tomorrow}.",
        "{S} came home with {new boots|an empty purse|a cough} and {a hundred stories|no regrets}.",
        "Nobody else from this street has ever been so far.",
    ),
    "birthplace": (
        "{S} {has not been back for years|remembers the bells there|left it as a child}.",
        "There was {snow|a storm|a fair} on that day, {p} mother used to say.",
        "{S} still speaks {as they do there|of its long summers}.",
    ),
    "sibling": (
        "As children they {quarrelled|laughed|ran away} {every day|more than once}.",
        "They {look alike|have the same laugh}, but neither likes to hear it.",
        "They {see each other|write} {twice a year|on feast days|too seldom}, {f} says.",
    ),
    "food": (
        "{S} could eat that {every day|in every season}.",
        "Nobody makes that as well as {p} {mother|aunt}, {s} says.",
        "On {feast days|Sundays} {s} has two helpings and {sleeps until dark|is not ashamed of it}.",
    ),
    "instrument": (
        "The neighbours {sing along|close their windows|stop to listen}.",
        "{S} knows {three|seven|twenty} songs and {plays them all|loves the sad ones best}.",
        "At {weddings|the harvest feast} nobody goes home before {the last song|{s} does}.",
    ),
}

CHAPTER_OPENINGS = (
    "I begin this chapter with {cold hands|a new pen|an old story}.",
    "This is the {week|year|season} that people here still call the time of the {x}.",
    "I came {up the road|by boat|over the hills} {in the rain|at noon}, with {this book|a loaf|two apples} in my bag.",
    "Whoever {reads|hears} this should know that I {was there|asked twice|slept little}.",
    "What follows was told to me {at the inn|on the bridge|by a stove}, and I {believe it|changed nothing}.",
    "Some chapters write themselves, and this is {one|not one} of them.",
)
CHAPTER_CLOSINGS = (
    "The candle is {low|nearly out}, and the rest {must wait until morning|belongs in another chapter}.",
    "Here I {close the book|put down the pen}, for {the bells ring|the soup is hot|it is late}.",
    "That is all I {heard|saw|know} of it, and {I have left nothing out|it is enough}.",
    "In the morning I {walk on|pack my bag}, and {nobody is awake|the road is dry|the whole street waves}.",
)
CHAPTER_SUBJECTS = (
    *("Frost", "Rain", "Lamps", "Bridge", "Harvest", "Ferry", "Orchard", "Mill Pond", "Snow", "Market", "Long Table"),
    *("Old Wall", "Bells", "Hill Road", "River", "Lanterns", "First Swallows", "Empty House", "Wedding", "North Wind"),
    *("Inn", "Dry Summer", "Flood", "Two Letters", "Tower", "Hay", "Mist", "Crossroads"),
)
CHAPTER_FRAMES = (
    "The {x}",
    "Before the {x}",
    "After the {x}",
    "News of the {x}",
    "The Year of the {x}",
    "A Tale of the {x}",
)
TITLE_PLACES = (
    *("Seven Valleys", "Long River", "Low Hills", "Upper Lakes", "Nine Bridges", "Western Fields", "Salt Coast"),
    "Far Mills",
)
